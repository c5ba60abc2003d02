"""Which constant tensors are weights: where they are used, how their axes lie, what is zero, and what is kept."""

__all__: list[str] = []
