"""Names and sentences that rooms share, kept apart so that reading options imports nothing."""

__all__ = ["ALLOCATIONS", "CRITERIA", "EFFORTS", "MAKE_CONSTANT"]

ALLOCATIONS = ("error", "emp", "uniform", "lamp", "erk", "owl")
CRITERIA = ("obs", "magnitude", "wanda", "sparsegpt", "gradient")
EFFORTS = ("full", "quick")
MAKE_CONSTANT = (
    "Weights that callers may replace stay as they are. If yours never do, this makes them constants: python -m "
    "onnxruntime.tools.remove_initializer_from_input --input IN --output OUT"
)
