"""What holds for all adapters: one mask from the same scores, light imports, each with its own extra only."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import emp_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomli is not installed")

ROOT = Path(__file__).resolve().parents[2]
# a folder with a pyproject.toml is a distribution of its own
ADAPTERS = sorted(p.name for p in (ROOT / "adapters").glob("emp_*") if not (p / "pyproject.toml").exists())
# what an adapter stands on, and what each of these brings
NEEDS = {
    "emp_torch": {"torch"},
    "emp_jax": {"jax", "optax"},
    "emp_sklearn": {"sklearn", "scipy"},
    "emp_keras": {"keras", "torch", "jax", "tensorflow"},
    "emp_safetensors": set(),
    "emp_onnx": set(),
}
FRAMEWORKS = {"torch", "jax", "optax", "sklearn", "scipy", "keras", "tensorflow", "safetensors", "onnx", "onnxruntime"}
BLOCK = """
import builtins
real = builtins.__import__
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and name.split(".")[0] in {blocked!r}:
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
"""


def run(code, blocked=()):
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=set(blocked)) + code],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}", "KERAS_BACKEND": backend() or "none"},
    )  # fmt: skip


def backend():
    return next((name for name in ("torch", "jax", "tensorflow") if find_spec(name)), None)


def present(adapter):
    if adapter == "emp_keras" and not backend():
        return False
    own = {"emp_torch": ["torch"], "emp_jax": ["jax", "optax"], "emp_sklearn": ["sklearn"], "emp_keras": ["keras"]}
    return all(find_spec(name) for name in own.get(adapter, []))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_needs_only_its_own_extra(adapter):
    if not present(adapter):
        pytest.skip(f"the framework of {adapter} is not installed")
    done = run(f"import {adapter}", FRAMEWORKS - NEEDS[adapter])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("adapter", sorted(a for a, needs in NEEDS.items() if needs))
def test_without_it_the_error_says_how_to_add_it(adapter):
    done = run(f"import {adapter}", FRAMEWORKS)
    assert done.returncode == 1
    extra = adapter.removeprefix("emp_")
    assert re.search(rf"MissingExtraError: .* pip install 'effective-pruning\[{extra}\]'$", done.stderr.strip())


@pytest.mark.skipif(not find_spec("keras"), reason="Keras is not installed")
def test_keras_without_a_backend_says_so():
    done = run("import emp_keras", {"torch", "jax", "tensorflow"})
    assert done.returncode == 1
    assert re.search(r"ImportError: Keras must have a backend .* install jax, torch or tensorflow", done.stderr)


def test_every_adapter_has_an_extra_and_is_in_the_wheel():
    held = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = held["project"]["optional-dependencies"]
    packages = held["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == ["adapters/" + name for name in ADAPTERS] + ["emp_core"]
    for adapter in ADAPTERS:
        name = adapter.removeprefix("emp_")
        assert name in extras
        others = {other.removeprefix("emp_") for other in ADAPTERS} - {name}
        assert not any(re.match(rf"({'|'.join(others)})\b", line) for line in extras[name])
        assert (ROOT / "adapters" / adapter / "py.typed").exists()
        assert not (ROOT / "adapters" / "__init__.py").exists()


@pytest.mark.parametrize("adapter", [a for a in ADAPTERS if a != "emp_onnx"])
def test_names_and_examples(adapter):
    if not present(adapter):
        pytest.skip(f"the framework of {adapter} is not installed")
    if adapter == "emp_keras":
        os.environ.setdefault("KERAS_BACKEND", backend())
    module = importlib.import_module(adapter)
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
    for item in pkgutil.iter_modules(module.__path__, f"{adapter}."):
        if item.name.endswith("__main__"):
            continue
        room = importlib.import_module(item.name)
        assert room.__doc__
        assert doctest.testmod(room).failed == 0
        text = Path(room.__file__).read_text(encoding="utf-8")
        if not item.name.endswith(".cli"):
            assert not re.search(r"(?<![>.\w] )\bprint\(", re.sub(r">>> .*", "", text))
            assert "sys.exit" not in text
        for other in set(ADAPTERS) - {adapter}:
            assert not re.search(rf"(from|import) {other}\.", text), f"{item.name} imports what is {other}'s own"


def pruned_by(adapter):
    """Prune something small in memory."""
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    if adapter == "emp_torch":
        import torch

        import emp_torch

        emp_torch.prune(torch.nn.Linear(4, 3))
    elif adapter == "emp_jax":
        import jax.numpy as jnp

        import emp_jax

        emp_jax.prune({"w": jnp.asarray(a)})
    elif adapter == "emp_keras":
        os.environ.setdefault("KERAS_BACKEND", backend())
        import keras

        import emp_keras

        emp_keras.prune(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    else:
        import emp_sklearn

        class Fitted:
            coefs_ = [a]  # noqa: RUF012

        emp_sklearn.prune(Fitted())


ROOMS = {"emp_torch": "apply", "emp_jax": "trees", "emp_keras": "model", "emp_sklearn": "perceptron"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras with PyTorch
@pytest.mark.parametrize(("adapter", "room"), ROOMS.items())
def test_what_fails_verification_ends_in_an_error_of_ours(adapter, room, monkeypatch):
    """Not in an `assert`, which `python -O` leaves out."""
    if not present(adapter):
        pytest.skip(f"the framework of {adapter} is not installed")
    if adapter == "emp_keras":
        os.environ.setdefault("KERAS_BACKEND", backend())
    pruned_by(adapter)
    module = importlib.import_module(f"{adapter}.{room}")
    monkeypatch.setattr(module, "verify", lambda *_: ("w has other zeros", "v too"))
    with pytest.raises(emp_core.VerifyError, match=r"must be as .* certificate says, got .* w has other zeros"):
        pruned_by(adapter)


def test_errors_of_verification_are_one_family():
    import emp_onnx
    import emp_safetensors

    assert emp_safetensors.VerifyError is emp_core.VerifyError
    assert issubclass(emp_onnx.VerifyError, emp_core.VerifyError)
    assert issubclass(emp_core.VerifyError, emp_core.EmpError)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras with PyTorch
@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_the_same_scores_give_the_same_masks_everywhere(tmp_path, scope):
    """Bit for bit: NumPy, PyTorch, JAX, Keras, scikit-learn, safetensors."""
    r = np.random.default_rng(0)
    first = np.round(r.standard_normal((24, 17)) * 8).astype(np.float32) / 8  # many ties
    second = r.standard_normal((9, 24)).astype(np.float32)
    named = {"first": first, "second": second}  # (outputs, inputs)
    if scope == "model":
        expected = emp_core.select(named, scope="model").mask
    else:
        expected = {n: emp_core.select(a, scope="rows" if scope == "row" else "whole").mask for n, a in named.items()}
    tried = []
    if find_spec("torch"):
        import torch

        import emp_torch

        model = torch.nn.Sequential(torch.nn.Linear(17, 24), torch.nn.Linear(24, 9))
        with torch.no_grad():
            for layer, a in zip(model, named.values(), strict=True):
                layer.weight.copy_(torch.from_numpy(a))
        masks = list(emp_torch.plan(model, scope=scope).masks.values())
        tried.append(("torch", [m.numpy() for m in masks]))
    if find_spec("jax") and find_spec("optax"):
        import jax.numpy as jnp

        import emp_jax

        masks = emp_jax.plan({n: jnp.asarray(a) for n, a in named.items()}, scope=scope, axis=0).masks
        tried.append(("jax", [np.asarray(m) for m in masks.values()]))
    import emp_safetensors
    from tests.frameworks.test_safetensors import dump, parse

    (tmp_path / "in.safetensors").write_bytes(dump(named))
    emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors", scope=scope)
    found, _ = parse(tmp_path / "out.safetensors")
    for n, a in named.items():
        assert np.array_equal(found[n], np.where(expected[n], a, 0)), "safetensors"
    # Keras and scikit-learn hold the transposed matrix; with ties another order of places decides, so they get it so
    turned = {n: np.ascontiguousarray(a.T) for n, a in named.items()}
    if scope == "model":
        other = emp_core.select(turned, scope="model").mask
    else:
        other = {n: emp_core.select(a, scope="columns" if scope == "row" else "whole").mask for n, a in turned.items()}
    if present("emp_keras"):
        os.environ.setdefault("KERAS_BACKEND", backend())
        import keras

        import emp_keras

        network = keras.Sequential([keras.Input((17,)), keras.layers.Dense(24), keras.layers.Dense(9)])
        for layer, a in zip(network.layers, turned.values(), strict=True):
            layer.kernel.assign(a)
        masks = list(emp_keras.plan(network, scope=scope).masks.values())
        assert all(np.array_equal(m, other[n]) for n, m in zip(turned, masks, strict=True)), "keras"
    if find_spec("sklearn"):
        import emp_sklearn

        class Fitted:
            coefs_ = list(turned.values())  # noqa: RUF012

        masks = list(emp_sklearn.plan(Fitted(), scope=scope).masks.values())
        assert all(np.array_equal(m, other[n]) for n, m in zip(turned, masks, strict=True)), "sklearn"
    for library, masks in tried:
        for mask, right in zip(masks, expected.values(), strict=True):
            assert np.array_equal(mask, right), library


def test_the_core_is_as_light_as_it_was():
    done = run("import emp_core, sys; print(*sys.modules)")
    assert not FRAMEWORKS & set(done.stdout.split())
    assert not {"emp_core.plans", "emp_core.certificates", "emp_core.signals"} & set(done.stdout.split())
