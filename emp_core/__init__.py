"""The count, the bounds, the selection of Effective Model Pruning, on arrays of any library."""
