"""What is left, fitted to what the dense model says: statistics, readers, least squares, and what goes first."""

__all__: list[str] = []
