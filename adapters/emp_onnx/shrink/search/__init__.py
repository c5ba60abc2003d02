"""How many units of which group go: amounts, paths of cuts, exchanges, and the fits that judge them."""

__all__: list[str] = []
