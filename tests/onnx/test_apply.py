"""Applying a plan: exactly that, and only to the model it was made for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_onnx import Model, Plan, PlanError, apply, plan, read_certificate, verify
from emp_onnx.certificates.rule import KEY
from emp_onnx.figures import SCOPES
from tests.onnx.builders import Case, cases, conv, expected_masks, gemm, tensor, two_layers

scopes = st.sampled_from(SCOPES)


@given(cases(), scopes, st.sampled_from([0.5, 1.0, 3.0]))
def test_removed_are_plus_zero_and_kept_keep_their_bits(case: Case, scope: str, beta: float) -> None:
    source = Model(case.model)
    pruned = apply(source, plan(source, scope=scope, beta=beta))
    masks = expected_masks(case, scope=scope, beta=beta)
    for name, array in case.weights.items():
        mask = masks.get(name, np.ones(array.shape, bool))
        expected = np.where(mask, array.view(np.uint32), np.uint32(0))
        assert pruned.values(name).view(np.uint32).tobytes() == expected.tobytes()
        assert source.values(name).tobytes() == array.tobytes()


@given(cases(), scopes)
def test_nothing_but_weights_and_certificate_changes(case: Case, scope: str) -> None:
    source = Model(case.model)
    made = plan(source, scope=scope)
    pruned = apply(source, made)
    back = pruned.replaced(dict(case.weights), {KEY: None})
    assert back.to_bytes() == source.to_bytes()
    assert verify(pruned).ok


@given(cases(), scopes)
def test_a_saved_plan_does_the_same(case: Case, scope: str) -> None:
    source = Model(case.model)
    made = plan(source, scope=scope)
    assert apply(source, Plan.from_json(made.to_json())).to_bytes() == apply(source, made).to_bytes()


def test_zeros_that_were_there_count_as_zeros_also_negative_ones() -> None:
    array = np.array([[3, -0.0, 2, 0], [-3, 0, 2, -0.0]], np.float32)
    case = gemm(np.random.default_rng(0), 4)
    case.model.graph.initializer[0].CopyFrom(tensor("w", array))
    source = Model(case.model)
    made = plan(source, sparsity=0.25)
    assert (made.entries[0].k, made.entries[0].zeros) == (6, 4)
    pruned = apply(source, made).values("w")
    assert np.count_nonzero(pruned == 0) == 4
    assert np.signbit(pruned).tolist() == [[False, True, False, False], [True, False, False, False]]
    assert verify(apply(source, made), source).ok


def other(change: str) -> Model:
    case = two_layers(np.random.default_rng(1))
    head = case.model.graph.initializer[0]
    if change == "value":
        array = case.weights["a"].copy()
        array.flat[-1] = np.nextafter(array.flat[-1], np.float32(0))
        head.CopyFrom(tensor("a", array))
    if change == "shape":
        head.CopyFrom(tensor("a", case.weights["a"].T.copy()))
    if change == "name":
        head.name = case.model.graph.node[0].input[1] = "renamed"
    if change == "dtype":
        head.CopyFrom(tensor("a", case.weights["a"].astype(np.float16)))
    return Model(case.model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("value", "weight 'a' has other values than the plan was made from"),
        ("shape", r"weight 'a' has the shape \(4, 6\), the plan says \(6, 4\)"),
        ("name", "there is no weight 'a'"),
        ("dtype", "weight 'a' holds float16, the plan says float32"),
    ],
)
def test_a_plan_for_another_model_is_refused(change: str, sentence: str) -> None:
    made = plan(other(""))
    with pytest.raises(PlanError, match=f"plan must be made for this model, got one made for another: {sentence}"):
        apply(other(change), made)


def test_a_plan_whose_rule_was_changed_is_refused() -> None:
    source = other("")
    made = dataclasses.replace(plan(source), rule=plan(source, beta=0.5).rule)
    with pytest.raises(PlanError, match="keeps other elements of weight 'a' than its own rule does"):
        apply(source, made)


def test_a_new_certificate_takes_the_old_one_s_place() -> None:
    source = Model(conv(np.random.default_rng(2)).model)
    once = apply(source, plan(source))
    twice = apply(once, plan(once))
    assert list(twice.metadata) == [KEY]
    assert read_certificate(twice).weights["w"].zeros > read_certificate(once).weights["w"].zeros
    assert verify(twice, once).ok
    assert not verify(twice, source).ok
