"""Forms in which tensors are stored: dense, sparse (coo), and packed, where only what is not zero is stored and a
function in the file itself says how it is unpacked."""

__all__: list[str] = []
