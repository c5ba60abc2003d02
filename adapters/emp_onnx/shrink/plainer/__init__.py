"""The same function said with fewer operations."""

__all__: list[str] = []
