"""Every operation, home, chain and dtype: found once, pruned as the slow oracle says, and run by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emp_onnx import Model, apply, find_weights, plan, verify
from emp_onnx.figures import SCOPES
from tests.onnx.builders import expected_masks, hash_mask
from tests.onnx.places import FLOAT_OPS, HOMES, QUANTISED_OPS, Place, build, places

QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4


def run(data: bytes, place: Place) -> str:
    """Empty when onnxruntime runs it, else what it said."""
    try:
        session = onnxruntime.InferenceSession(data, QUIET, providers=["CPUExecutionProvider"])
        session.run(None, place.feed)
    except Exception as error:
        return str(error)
    return ""


def check(place: Place, scope: str, beta: float) -> str:
    """Prune one place, compare everything; returns what onnxruntime said of the original."""
    source = Model(place.model)
    found = find_weights(source)
    assert [item.key for item in found.weights if item.tensor != "r"] == [place.key], found.refusals
    assert source.values(place.key).dtype == place.stored.dtype
    assert source.values(place.key).tobytes() == place.stored.tobytes()
    masks = expected_masks(place.case, scope=scope, beta=beta)
    made = plan(source, scope=scope, beta=beta, include=[place.key])
    if scope == "model" and place.quantised and not place.scaled and masks:
        assert [r.code for r in made.refusals if r.tensor != "r"] == ["scale"]
        return ""
    if not masks:
        assert [r.code for r in made.refusals if r.tensor != "r"] == ["zeros"]
        return ""
    if scope == "row" and found.weights[0].layout is None:
        # a reshape before a transposition can leave units that no view of the stored weight has
        assert {"Reshape", "Transpose"} <= set(found.weights[0].path)
        assert [r.code for r in made.refusals] == ["units"]
        return ""
    mask = masks[place.key]
    assert [entry.kept_sha256 for entry in made.entries] == [hash_mask(mask)]
    pruned = apply(source, made)
    wanted = np.where(mask, place.stored, place.zero.astype(place.stored.dtype))
    assert pruned.values(place.key).astype(np.float64).tolist() == wanted.astype(np.float64).tolist()
    assert made.entries[0].zeros == np.count_nonzero(wanted.astype(np.float64) == place.zero)
    done = verify(pruned, source, feeds=None)
    assert done.ok, done.faults
    assert pruned.rest(frozenset({place.key}), "effective_pruning.certificate") == source.rest(
        frozenset({place.key}), "effective_pruning.certificate"
    )
    before = run(source.to_bytes(), place)
    assert bool(before) == bool(run(pruned.to_bytes(), place))
    return before


@settings(max_examples=35, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(places(), st.sampled_from(SCOPES), st.sampled_from([0.5, 1.0, 1.5]))
def test_any_place(place: Place, scope: str, beta: float) -> None:
    check(place, scope, beta)


@pytest.mark.parametrize("home", HOMES)
def test_every_home_runs_in_onnxruntime(home: str) -> None:
    op = FLOAT_OPS[0]
    for seed, steps in enumerate([[], [("Transpose", 1)], [("Squeeze", 0), ("Reshape", 2)]]):
        place = build(op, home, np.float32, steps, np.random.default_rng(seed), "one")
        assert check(place, "row", 1.0) == ""


@pytest.mark.parametrize("index", range(len(FLOAT_OPS)), ids=lambda i: f"{i}-{FLOAT_OPS[i].op}")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_every_operation_runs_in_onnxruntime(index: int, dtype: type) -> None:
    rng = np.random.default_rng(index)
    for scope in SCOPES:
        place = build(FLOAT_OPS[index], "initializer", dtype, [("Transpose", 3)], rng, "axis")
        assert check(place, scope, 1.0) == ""


@pytest.mark.parametrize("index", range(len(QUANTISED_OPS)), ids=lambda i: f"{i}-{QUANTISED_OPS[i].op}")
@pytest.mark.parametrize("spread", ["one", "axis"])
def test_every_quantised_operation_runs_in_onnxruntime(index: int, spread: str) -> None:
    rng = np.random.default_rng(index)
    for scope in SCOPES:
        place = build(QUANTISED_OPS[index], "initializer", np.uint8, [], rng, spread)
        assert check(place, scope, 1.0) == ""
