"""What people read: complete, aligned, plain where it must be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from emp_onnx import Model, plan, prune, verify
from emp_onnx.errors import MissingExtraError
from emp_onnx.figures import SCOPES
from emp_onnx.texts.pruning import NO_FASTER, plan_text, report_text, verification_text
from emp_onnx.texts.style import Style
from tests.onnx.builders import gemm, two_layers, write
from tests.onnx.places import FLOAT_OPS, build

RNG = np.random.default_rng(0)
LONG = "encoder.layers.0." + "x" * 300


def long_named() -> Model:
    case = two_layers(np.random.default_rng(0), 6)
    case.model.graph.initializer[0].name = case.model.graph.node[0].input[1] = LONG
    return Model(case.model)


@pytest.mark.parametrize("scope", SCOPES)
def test_every_figure_is_there_and_nothing_is_cut(scope: str) -> None:
    made = plan(long_named(), scope=scope)
    text = plan_text(made)
    assert LONG in text
    for e in [*made.entries, made.total]:
        for shown in (f"{e.n:,}", f"{e.n_eff:,.1f}", f"{e.density:.2%}", f"{e.mass_lower:.4f}", f"{e.mass:.4f}"):
            assert shown in text
    assert "\x1b" not in text
    assert ("common pool" in text) == (scope == "model")
    assert ("worst" in text) == (scope == "row")


def test_a_narrow_terminal_folds_names_and_keeps_figures() -> None:
    made = plan(long_named())
    text = plan_text(made, Style(40, True))
    assert "\x1b[" in text
    assert "…" not in text
    assert f"{made.entries[0].mass:.4f}" in text
    assert text.count("x") >= 300


def test_only_ascii_where_nothing_else_can_be_shown() -> None:
    text = plan_text(plan(long_named(), scope="row", exclude=["b"]), Style(ascii=True))
    assert text.isascii()
    assert "beta" in text
    assert Style.of(io.TextIOWrapper(io.BytesIO(), "ascii")).ascii
    assert not Style.of(io.TextIOWrapper(io.BytesIO(), "utf-8")).ascii
    assert Style.of(io.StringIO()) == Style(None, False, False)


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    case = two_layers(np.random.default_rng(0), 6)
    case.model.graph.initializer[0].name = case.model.graph.node[0].input[1] = "a\x1b[2J\n\rb\u202e"
    text = report_text(prune(write(case.model, tmp_path / "m.onnx"), exclude=["second"]))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a\\x1b[2J\\n\\rb\\u202e" in text


def test_the_report_says_what_people_should_know(tmp_path: Path) -> None:
    path = write(two_layers(np.random.default_rng(0), 6).model, tmp_path / "m.onnx")
    report = prune(path, exclude=["a"])
    text = report_text(report)
    assert NO_FASTER in text
    assert f"{path.stat().st_size:,} before" in text
    assert "Gzipped:" in text
    assert "1 × excluded by the pattern 'a': 'a'" in text
    assert "[ok] kept weights are bit-equal, removed ones zero" in text
    assert "4 seeded random feeds" in text
    assert str(report.out) in text
    assert "not measured" in report_text(prune(path, gzip=False))


def test_nothing_pruned_is_said_loudly() -> None:
    half = gemm(RNG)
    half.model.graph.initializer[0].data_type = 6
    assert "NOTHING CAN BE PRUNED (1 tensor)" in plan_text(plan(Model(half.model)))
    half.model.graph.node[0].op_type = "Unknown"
    assert "NOTHING CAN BE PRUNED: no operation" in plan_text(plan(Model(half.model)))


def test_dtype_way_and_zero_point_are_shown() -> None:
    quantised = next(op for op in FLOAT_OPS if op.op == "Gemm")
    place = build(quantised, "constant", np.int8, [("Transpose", 1)], np.random.default_rng(0), "one")
    made = plan(Model(place.model))
    text = plan_text(made)
    assert f"int8, zero {made.entries[0].zero}" in text
    assert "Transpose → DequantizeLinear → Gemm" in text


def test_orders_and_sparsities_are_explained() -> None:
    source = Model(gemm(RNG).model)
    assert "Hill number of order 1" in plan_text(plan(source, order=1))
    assert "sparsity 0.5, as asked" in plan_text(plan(source, sparsity=0.5))


def test_failures_are_shown() -> None:
    text = verification_text(verify(Model(gemm(RNG).model)))
    assert "[FAILED] the certificate is whole" in text
    assert "must carry a certificate" in text


def test_a_missing_rich_says_how_to_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich", None)
    with pytest.raises(MissingExtraError, match="rich is needed"):
        plan_text(plan(Model(gemm(RNG).model)))
