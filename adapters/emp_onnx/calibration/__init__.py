"""Calibration: what goes into every weight of a model when it runs, as sums in float64."""

__all__: list[str] = []
