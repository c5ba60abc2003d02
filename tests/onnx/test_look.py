"""A look at many short weights together finds what a look at each finds, and leaves what differs to that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx import Model, Rule, apply, find_weights, load, plan, save, verify
from emp_onnx.apply import applied
from emp_onnx.decide import decide
from emp_onnx.verification.written import verify_written
from emp_onnx.weights.kept import Pruned
from emp_onnx.weights.look import look, look_each
from tests.onnx.builders import Case, cases, two_layers, write, write_external


def pruned(case: Case, rule: Rule) -> tuple[Model, Model, Any]:
    source = Model(case.model)
    decision = decide(source, find_weights(source).weights, rule)
    return source, Model(applied(source, decision.plan, decision).to_bytes()), decision


@given(
    cases(), st.sampled_from(["tensor", "row", "model"]), st.sampled_from([{}, {"sparsity": 0.5}, {"sparsity": 0.0}])
)
def test_together_as_one_by_one(case: Case, scope: str, rule: dict[str, float]) -> None:
    source, written, decision = pruned(case, Rule(scope=scope, **rule))
    patches = [Pruned(decision.weights[name], kept) for name, kept in decision.kept.items()]
    together = look_each(written, source, patches)
    assert together.keys() == (set() if scope == "row" else decision.kept.keys())
    for patch in patches:
        alone = look(written, patch.weight, original=source, patch=patch)
        if patch.weight.name not in together:
            continue
        seen = together[patch.weight.name]
        assert (seen.zeros, seen.least, seen.removed, seen.changed) == (alone.zeros, alone.least, 0, 0)
        assert (alone.removed, alone.changed) == (0, 0)
        assert seen.l1 == pytest.approx(alone.l1, rel=1e-12)
        assert seen.squares == pytest.approx(alone.squares, rel=1e-12)


@settings(max_examples=25)
@given(cases(), st.data())
def test_a_bit_that_differs_is_left_to_a_closer_look_and_found(case: Case, data: st.DataObject) -> None:
    source, written, decision = pruned(case, Rule())
    if not decision.kept:
        return
    name = data.draw(st.sampled_from(sorted(decision.kept)))
    values = written.values(name).copy()
    bits = values.view(np.uint32).reshape(-1)
    bits[data.draw(st.integers(0, bits.size - 1))] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    changed = Model(written.replaced({name: values}, {}).to_bytes())
    patches = [Pruned(decision.weights[n], kept) for n, kept in decision.kept.items()]
    assert name not in look_each(changed, source, patches)
    done = verify_written(changed, source, decision)
    assert not done.ok
    assert any(quoted in fault for fault in done.faults for quoted in ("removed elements", "bits differ"))


@pytest.mark.parametrize("external", [False, True])
def test_what_is_written_but_is_not_a_weight_is_compared(tmp_path: Any, external: bool) -> None:
    proto = two_layers(np.random.default_rng(4), 8).model
    path = (write_external if external else write)(proto, tmp_path / "m.onnx")
    source = load(path)
    decision = decide(source, find_weights(source, include=["a"]).weights, Rule())
    files = save(applied(source, decision.plan, decision), tmp_path / "out.onnx")
    assert verify_written(load(files[0]), source, decision).ok
    assert verify(files[0], path).ok
    data = bytearray(files[-1].read_bytes())
    at = data.index(source.values("b").tobytes())
    data[at] ^= 1
    files[-1].write_bytes(data)
    done = verify_written(load(files[0]), source, decision)
    assert [check.what for check in done.checks if not check.ok] == ["nothing else differs"]


def test_a_report_s_plan_has_no_hashes_and_a_saved_one_has(tmp_path: Any) -> None:
    import emp_onnx

    path = write(two_layers(np.random.default_rng(4), 8).model, tmp_path / "m.onnx")
    entry = emp_onnx.prune(path).to_dict()["plan"]["entries"][0]
    assert not {"sha256", "kept_sha256"} & entry.keys()
    source = load(path)
    made = plan(source)
    assert {"sha256", "kept_sha256"} <= made.to_dict()["entries"][0].keys()
    assert apply(source, made).to_bytes() == (tmp_path / "m.pruned.onnx").read_bytes()
