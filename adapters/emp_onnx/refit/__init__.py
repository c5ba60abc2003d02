"""Closed-form refit: which weights stay, and what the others must become so that the outputs stay what they were."""

__all__: list[str] = []
