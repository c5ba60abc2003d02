"""The package: light to import, honest about its names, whole in the wheel."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import emp_core

# rooms that are imported by their own names
APART = (
    "attention", "certificates", "checksum", "direct", "figures", "kan", "plans", "quick", "ramp", "signals", "whole",
)  # fmt: skip
HEAVY = ["scipy", "onnx", "onnxruntime", "torch", "jax", "hypothesis", "emp_onnx"]


def loaded_after(code):
    """Modules that a fresh interpreter holds after ``code``."""
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


def heavy(modules):
    return [name for name in HEAVY if name in modules]


def test_import_pulls_in_nothing_heavy():
    assert heavy(loaded_after("import emp_core, emp_core.testing")) == []


def test_that_test_can_fail():
    assert heavy(loaded_after("import emp_core, hypothesis")) == ["hypothesis"]


@pytest.mark.alone
def test_import_is_fast():
    """At most 0.15 s, NumPy included, in the best of several fresh interpreters.

    On a machine so busy that NumPy alone takes long, what we add to it is at most half of what it takes.
    """
    best = {"numpy": float("inf"), "emp_core": float("inf")}
    for _ in range(20):
        for name in best:
            code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            best[name] = min(best[name], float(out))
        if best["emp_core"] <= 0.15:
            return
    assert best["numpy"] > 0.1, best
    assert best["emp_core"] <= 1.5 * best["numpy"], best


def test_all_is_sorted_and_equals_the_public_names():
    public = {n for n in vars(emp_core) if not n.startswith("_")} - {"testing", *APART}
    assert emp_core.__all__ == sorted(emp_core.__all__)
    assert set(emp_core.__all__) == public
    for module in ("criteria", "testing"):
        m = importlib.import_module(f"emp_core.{module}")
        assert m.__all__ == sorted(m.__all__)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(emp_core.__path__)])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(f"emp_core.{name}"))
    assert result.failed == 0


def test_public_things_have_docstrings():
    for name in emp_core.__all__:
        assert getattr(emp_core, name).__doc__, name
