"""Names that the command line and the rooms behind it share, kept apart so that reading options imports nothing."""

__all__ = ["ALLOCATIONS", "CRITERIA", "EFFORTS"]

ALLOCATIONS = ("error", "emp", "uniform", "lamp", "erk", "owl")
CRITERIA = ("obs", "magnitude", "wanda", "sparsegpt", "gradient")
EFFORTS = ("full", "quick")
