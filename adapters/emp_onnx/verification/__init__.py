"""Whether a pruned model is what it is said to be: by its certificate, against the original, and both on feeds."""

__all__: list[str] = []
