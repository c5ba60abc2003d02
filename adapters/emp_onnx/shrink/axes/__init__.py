"""Coupled axes: which coordinates of which tensors go together, from one relation per operation."""

__all__: list[str] = []
