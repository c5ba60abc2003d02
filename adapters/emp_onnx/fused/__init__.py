"""Packed weights moved into the operations that use them, and models run so, with kernels or without."""

__all__: list[str] = []
