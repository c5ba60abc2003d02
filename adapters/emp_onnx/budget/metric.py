"""A score of the user's own: a function in a script, from the path of a model to a number, higher is better."""

from __future__ import annotations

import importlib.util
import math
import traceback
from collections.abc import Callable
from pathlib import Path

from emp_onnx.errors import UsageError, quote

__all__ = ["MetricError", "read_metric"]


class MetricError(UsageError):
    """A metric script that failed; `shown` is its traceback, for people to read."""

    def __init__(self, message: str, shown: str = "") -> None:
        super().__init__(message)
        self.shown = shown


def read_metric(spec: str) -> Callable[[Path], float]:
    """The function that `script.py:function` names.

    Raises:
        UsageError: no such file, or no such function in it.
        MetricError: the script raised, or ended itself, while it was read. The function raises the same when it does
            not give a number.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(f"metric must be SCRIPT.py:FUNCTION, got {quote(spec)}")
    if not Path(place).is_file():
        raise UsageError(f"metric must name a script that exists, got {quote(place)}")
    found = importlib.util.spec_from_file_location("emp_metric_script", place)
    if found is None or found.loader is None:
        raise UsageError(f"metric must name a Python script, got {quote(place)}")
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's script raises; one that ends itself has failed too
        raise _failed(spec, error) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"metric must name a function of {quote(place)}, got {quote(name)}")

    def score(path: Path) -> float:
        try:
            value = float(function(str(path)))
        except (Exception, SystemExit) as error:
            raise _failed(spec, error) from error
        if not math.isfinite(value):
            raise MetricError(f"metric {quote(spec)} must give a finite number, got {value}")
        return value

    return score


def _failed(spec: str, error: BaseException) -> MetricError:
    shown = "".join(traceback.format_exception(error))
    return MetricError(f"metric {quote(spec)} must run, got {type(error).__name__}: {error}", shown)
