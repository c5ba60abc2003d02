"""What goes before units do: places, directions, bounds."""

__all__: list[str] = []
