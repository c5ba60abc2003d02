"""Plans and certificates of named arrays: data that survives text, and finds every change."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emp_core
from emp_core import ArgumentError, PoolError, certificates, plans
from emp_core.certificates import Seen
from emp_core.testing import weight_tensors

RULES = [
    plans.Rule(),
    plans.Rule(0.5),
    plans.Rule(order=1),
    plans.Rule(order=math.inf),
    plans.Rule(sparsity=0.6),
    plans.Rule(scope="row"),
    plans.Rule(scope="model"),
    plans.Rule(sparsity=0.3, scope="model"),
]


def arrays():
    r = np.random.default_rng(0)
    return {
        "a": r.standard_normal((6, 9)).astype(np.float32),
        "b": np.round(r.standard_normal((4, 3, 2)) * 2),
        "h": r.standard_normal(40).astype(np.float16),
    }


def pruned(named, plan):
    return {name: np.where(np.asarray(plan.masks[name]), a, 0).astype(a.dtype) for name, a in named.items()}


def faults(text, named):
    certificate = certificates.read(text)
    return [
        fault
        for name, a in named.items()
        for fault in certificates.contradictions(certificate, name, a.shape, a.dtype.name, Seen.whole(a))
    ]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_plan_is_the_selection(rule):
    named = arrays()
    made = plans.decide(named, rule)
    for name, a in named.items():
        if rule.scope == "model":
            mask = emp_core.select(named, scope="model", **rule.keeps()).mask[name]
        else:
            mask = emp_core.select(a, scope="rows" if rule.scope == "row" else "whole", **rule.keeps()).mask
        assert np.array_equal(made.masks[name], mask)
    for e in made.entries:
        assert e.k == np.count_nonzero(made.masks[e.name])
        assert e.zeros == np.count_nonzero(pruned(named, made)[e.name] == 0)
        assert e.mass_lower <= e.mass * (1 + 1e-12)
        assert e.mass <= e.mass_upper * (1 + 1e-12)
        assert math.isclose(e.l1, np.abs(named[e.name].astype(np.float64)).sum())
        share = np.abs(named[e.name].astype(np.float64))[np.asarray(made.masks[e.name])].sum() / e.l1
        assert math.isclose(e.mass, share, rel_tol=1e-9)
    again = plans.Plan.from_json(made.to_json())
    assert again == made
    assert again.to_json() == made.to_json()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_certificate_holds_and_any_change_is_found(rule):
    named = arrays()
    made = plans.decide(named, rule)
    left = pruned(named, made)
    text = certificates.certify(made, {name: Seen.whole(a).kept for name, a in left.items()})
    assert faults(text, left) == []
    assert certificates.write(certificates.read(text)) == text
    for name, a in left.items():
        flat = a.reshape(-1)
        for i in (0, flat.size // 2, flat.size - 1):
            changed = a.copy()
            changed.reshape(-1)[i] = 1.25 if flat[i] == 0 else 0
            assert faults(text, {**left, name: changed})
        assert faults(text, {**left, name: a[::-1].copy()}) or np.array_equal(a, a[::-1])
        assert faults(text, {**left, name: a.astype(np.float64 if a.dtype != np.float64 else np.float32)})


@given(weight_tensors(dtype="float32"), st.sampled_from(RULES))
@settings(max_examples=60)
def test_certificates_hold_for_all_weights(w, rule):
    if not w.size or (rule.scope == "row" and not w.ndim):
        return
    w = np.where(np.abs(w) < 1e-30, 0, np.clip(w, -1e15, 1e15)).astype(np.float32)
    made = plans.decide({"w": w}, rule)
    assert bool(made.entries) == bool(w.any())
    if not made.entries:
        return
    left = pruned({"w": w}, made)
    assert faults(certificates.certify(made, {"w": Seen.whole(left["w"]).kept}), left) == []


def test_a_forged_figure_is_found_though_its_hash_was_made_anew():
    import dataclasses

    named = arrays()
    made = plans.decide(named, plans.Rule())
    left = pruned(named, made)
    right = certificates.read(certificates.certify(made, {n: Seen.whole(a).kept for n, a in left.items()}))
    for change in ({"k": 3}, {"n_eff": 20.0}, {"mass": 0.5}, {"mass_lower": 0.1}, {"mass_upper": 0.999}, {"l1": 1.0}):
        said = {**right.weights, "a": dataclasses.replace(right.weights["a"], **change)}
        assert faults(certificates.write(dataclasses.replace(right, weights=said)), left), change


def test_edited_and_damaged_texts():
    named = arrays()
    made = plans.decide(named, plans.Rule())
    text = certificates.certify(made, dict.fromkeys(named, "0" * 64))
    with pytest.raises(ArgumentError, match="edited"):
        certificates.read(text.replace('"beta":1.0', '"beta":2.0'))
    for bad in ("", "{}", "[]", "null", text[:-5], text.replace('"version":3', '"version":7'), "[" * 100_000):
        with pytest.raises(ArgumentError, match="certificate must be"):
            certificates.read(bad)
    for bad in ("", "{}", "[" * 100_000, made.to_json()[:-9]):
        with pytest.raises(ArgumentError, match="plan must be"):
            plans.Plan.from_json(bad)
    body = json.loads(made.to_json())
    body["entries"][0]["shape"] = [1 << 40, 1 << 40]
    with pytest.raises(ArgumentError, match="plan must be"):
        plans.Plan.from_json(json.dumps(body))


def test_scores_that_are_not_magnitudes():
    named = arrays()
    scores = {n: np.random.default_rng(1).random(a.shape) for n, a in named.items()}
    made = plans.decide(named, plans.Rule(), scores=scores, criterion="random")
    assert all(np.array_equal(made.masks[n], emp_core.select(s).mask) for n, s in scores.items())
    left = pruned(named, made)
    text = certificates.certify(made, {n: Seen.whole(a).kept for n, a in left.items()})
    assert certificates.read(text).criterion == "random"
    assert faults(text, left) == []
    with pytest.raises(ArgumentError, match=r"scores of a must have the shape of its weight \(6, 9\), got \(2,\)"):
        plans.decide(named, plans.Rule(), scores={**scores, "a": np.ones(2)})
    with pytest.raises(ArgumentError, match="got nothing"):
        plans.decide(named, plans.Rule(), scores={})


def test_empty_and_wrong():
    made = plans.decide({"empty": np.ones((0, 3)), "zeros": np.zeros(4)})
    assert [name for name, _ in made.refusals] == ["empty", "zeros"]
    assert made.entries == ()
    assert plans.decide({}).entries == ()
    assert plans.Plan.from_json(plans.decide({}).to_json()).entries == ()
    with pytest.raises(PoolError, match=r"b: .*finite"):
        plans.decide({"b": np.array([1.0, np.nan])})
    for options, what in (
        ({"scope": "x"}, "scope must be one of"),
        ({"beta": 0}, "beta must be"),
        ({"sparsity": 1}, "sparsity must be"),
        ({"sparsity": 0.5, "beta": 2.0}, "left alone"),
        ({"order": -1}, "order must be"),
    ):
        with pytest.raises(ArgumentError, match=what):
            plans.Rule(**options)
