"""Models as bytes: read by position, and written as copies with a few bytes changed."""

__all__: list[str] = []
