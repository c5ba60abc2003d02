"""How much to remove: the amount that a budget of lost agreement, error, score or bytes allows."""

__all__: list[str] = []
