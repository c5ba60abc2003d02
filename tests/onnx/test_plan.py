"""Plans: the figures and masks against the slow oracle, and as data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx import Model, ModelError, Plan, PlanError, Rule, UsageError, find_weights, plan
from emp_onnx.decide import decide, hashed
from emp_onnx.figures import SCOPES
from emp_onnx.weights.kept import mask_of
from tests.onnx.builders import Case, cases, expected_masks, gemm, hash_mask, model, tensor, two_layers, value

scopes = st.sampled_from(SCOPES)
betas = st.sampled_from([0.25, 0.5, 1.0, 1.5, 4.0])
RNG = np.random.default_rng(7)


def make(case: Case, **options: object) -> Plan:
    return plan(Model(case.model), **options)  # type: ignore[arg-type]


@given(cases(), scopes, betas)
def test_masks_are_the_oracle_s(case: Case, scope: str, beta: float) -> None:
    masks = expected_masks(case, scope=scope, beta=beta)
    made = make(case, scope=scope, beta=beta)
    assert {e.name: e.kept_sha256 for e in made.entries} == {name: hash_mask(mask) for name, mask in masks.items()}


@given(cases(), scopes, st.sampled_from([0.0, 0.3, 0.5, 0.99]))
def test_sparsity_overrides_the_count_and_nothing_else(case: Case, scope: str, sparsity: float) -> None:
    masks = expected_masks(case, scope=scope, sparsity=sparsity)
    made = make(case, scope=scope, sparsity=sparsity)
    assert {e.name: e.kept_sha256 for e in made.entries} == {name: hash_mask(mask) for name, mask in masks.items()}


@given(cases(), scopes, betas)
def test_figures_agree_with_masks_and_bounds_hold(case: Case, scope: str, beta: float) -> None:
    model_ = Model(case.model)
    weights = find_weights(model_).weights
    decision = hashed(model_, decide(model_, weights, Rule(beta, scope=scope)))
    made = decision.plan
    masks = {w.name: mask_of(model_, w, decision.kept[w.name]) for w in weights if w.name in decision.kept}
    for e in made.entries:
        w, mask = case.weights[e.name].astype(np.float64), masks[e.name]
        assert (e.n, e.k, e.shape) == (w.size, mask.sum(), w.shape)
        assert e.zeros == np.count_nonzero(np.where(mask, w, 0) == 0)
        assert e.sha256 == hashlib.sha256(case.weights[e.name].tobytes()).hexdigest()
        assert e.l1 == pytest.approx(np.abs(w).sum())
        assert e.mass == pytest.approx(np.abs(w[mask]).sum() / np.abs(w).sum())
        assert e.mass_lower <= e.mass * (1 + 1e-9)
        assert e.mass <= e.mass_upper * (1 + 1e-9)
        assert e.worst <= e.mass * (1 + 1e-9)
        if scope != "row":
            a = np.abs(w) / np.abs(w).max()
            assert e.n_eff == pytest.approx(a.sum() ** 2 / (a * a).sum())
    if made.entries:
        total = made.total
        assert total.n == sum(e.n for e in made.entries)
        assert total.k == sum(e.k for e in made.entries)
        assert total.mass == pytest.approx(
            math.fsum(e.mass * e.l1 for e in made.entries) / math.fsum(e.l1 for e in made.entries)
        )
        assert total.density + total.sparsity == pytest.approx(1)


@given(cases(), scopes, st.sampled_from([0.0, 1.0, 2.0, 3.5, math.inf]))
def test_round_trip_through_json_is_exact(case: Case, scope: str, order: float) -> None:
    made = make(case, scope=scope, order=order)
    text = made.to_json()
    again = Plan.from_json(text)
    assert again == made
    assert again.to_json() == text
    assert make(case, scope=scope, order=order).to_json() == text


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_plan_does_not_depend_on_threads(scope: str, threads: int) -> None:
    case = two_layers(np.random.default_rng(3), 40)
    assert make(case, scope=scope, threads=threads).to_json() == make(case, scope=scope).to_json()


FIXED = "sparsity fixes the count, so beta and order must be left alone, got "


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": -1.0}, "beta must be a finite number > 0, got -1.0"),
        ({"beta": 0}, "beta must be a finite number > 0, got 0"),
        ({"beta": math.nan}, "beta must be a finite number > 0, got nan"),
        ({"beta": math.inf}, "beta must be a finite number > 0, got inf"),
        ({"beta": "x"}, "beta must be a finite number > 0, got 'x'"),
        ({"order": -1}, "order must be a number ≥ 0, got -1"),
        ({"order": math.nan}, "order must be a number ≥ 0, got nan"),
        ({"sparsity": 1.0}, "sparsity must be in [0, 1), got 1.0"),
        ({"sparsity": -0.1}, "sparsity must be in [0, 1), got -0.1"),
        ({"sparsity": 0.5, "beta": 2.0}, f"{FIXED}beta=2.0, order=2.0"),
        ({"sparsity": 0.5, "order": 1}, f"{FIXED}beta=None, order=1"),
        ({"scope": "channel"}, "scope must be one of tensor, row, model, got 'channel'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(gemm(RNG), **options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(scope: str, bad: float) -> None:
    case = two_layers(RNG)
    array = case.weights["b"].copy()
    array.flat[2] = bad
    case.model.graph.initializer[1].CopyFrom(tensor("b", array))
    with pytest.raises(ModelError, match=r"weight 'b' must hold finite numbers, got 1 that are NaN or infinite"):
        make(case, scope=scope)
    assert [e.name for e in make(case, scope=scope, exclude=["b"]).entries] == ["a"]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_weight_of_zeros_is_refused(scope: str) -> None:
    case = two_layers(RNG)
    case.model.graph.initializer[0].CopyFrom(tensor("a", np.zeros_like(case.weights["a"])))
    made = make(case, scope=scope)
    assert [(r.name, r.code) for r in made.refusals] == [("a", "zeros")]
    assert [e.name for e in made.entries] == ["b"]


def test_uses_that_disagree_are_refused_under_rows_only() -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "a", transB=1),
        helper.make_node("MatMul", ["h", "w"], ["y"], "b"),
    ]
    w = RNG.standard_normal((4, 4)).astype(np.float32)
    proto = model(nodes, [value("x", ["N", 4])], [value("y", None)], [tensor("w", w)])
    assert [r.code for r in plan(Model(proto), scope="row").refusals] == ["units"]
    assert [e.name for e in plan(Model(proto)).entries] == ["w"]


def test_a_model_without_weights_gives_a_plan_without_entries() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    made = plan(Model(model([node], [value("x", [1])], [value("y", None)])))
    assert made.entries == ()
    assert Plan.from_json(made.to_json()) == made


def damaged() -> list[tuple[str, str]]:
    good = make(gemm(np.random.default_rng(1))).to_dict()

    def changed(**change: object) -> str:
        return json.dumps({**good, **change})

    entry = good["entries"][0]
    return [
        ("", "must be JSON"),
        ("[]", "of the format"),
        ("{}", "of the format"),
        ('{"format": "effective_pruning.plan"}', "of version 1, got None"),
        (changed(version=2), "of version 1, got 2"),
        (changed(rule=None), "rule as an object"),
        (changed(rule={"beta": 1.0}), "order is missing"),
        (changed(rule={**good["rule"], "beta": -1.0}), "beta must be a finite number > 0"),
        (changed(rule={**good["rule"], "scope": 3}), "scope must be str"),
        (changed(entries=[{}]), "n is missing"),
        (changed(entries=[{**entry, "k": "3"}]), "k must be int"),
        (changed(entries=[{**entry, "k": True}]), "k must be int"),
        (changed(entries=[{**entry, "shape": [1.5]}]), "shape must be a list of whole numbers"),
        (changed(entries=[{**entry, "more": 1}]), "no field 'more'"),
        (changed(entries=7), "damaged"),
        (changed(pool=[1]), "pool as an object"),
        ("[" * 100000, "must be JSON"),
    ]


@pytest.mark.parametrize(("text", "sentence"), damaged())
def test_a_damaged_plan_is_refused_with_the_place(text: str, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        Plan.from_json(text)


def test_names_of_any_kind_survive(capsys: pytest.CaptureFixture[str]) -> None:
    case = gemm(np.random.default_rng(1))
    case.model.graph.initializer[0].name = case.model.graph.node[0].input[1] = "é\n\x1b[31m\u2028"
    made = make(case)
    assert Plan.from_json(made.to_json()) == made
    assert made.to_json().isascii()


def test_results_are_frozen() -> None:
    made = make(gemm(np.random.default_rng(1)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rule = Rule()  # type: ignore[misc]


@settings(max_examples=20)
@given(cases(), scopes)
def test_planning_changes_nothing(case: Case, scope: str) -> None:
    before = case.model.SerializeToString()
    made = Model(case.model)
    plan(made, scope=scope)
    assert made.to_bytes() == before == case.model.SerializeToString()
