"""Weights taken a few numbers at a time give the plan and bytes that whole ones give, for any number of threads."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import emp_onnx
from emp_onnx import Model, apply, plan
from emp_onnx.figures import SCOPES
from emp_onnx.files.storage import pieces_of
from emp_onnx.weights.kept import boxes
from tests.onnx.builders import BUILDERS, two_layers, write, write_external


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_boxes_cover_a_stretch_in_order(shape: list[int], data: st.DataObject) -> None:
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    index = np.arange(size).reshape(shape)
    found = [index[box].reshape(-1) for box in boxes(tuple(shape), start, stop)]
    assert np.concatenate([np.empty(0, int), *found]).tolist() == list(range(start, stop))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("build", "options"), [(b, o) for _, b, o in BUILDERS], ids=[n for n, _, _ in BUILDERS])
@pytest.mark.parametrize("block", [7])
def test_pieces_of_any_length(
    build: Any, options: dict[str, list[Any]], scope: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("normal", "tied"):
        for last in (0, -1):
            case = build(np.random.default_rng(block), 5, kind, **{k: v[last] for k, v in options.items()})
            whole = plan(Model(case.model), scope=scope)
            data = apply(Model(case.model), whole).to_bytes()
            with monkeypatch.context() as patch:
                for room in ("weights.look", "files.model_io", "decide", "files.storage"):
                    patch.setattr(import_module(f"emp_onnx.{room}"), "pieces_of", partial(pieces_of, most=8))
                patch.setattr("emp_onnx.weights.rows.BLOCK", block)
                parts = plan(Model(case.model), scope=scope)
                assert [e.kept_sha256 for e in parts.entries] == [e.kept_sha256 for e in whole.entries]
                if scope == "tensor":  # elsewhere some sums are taken piece by piece, and rounded so
                    assert parts == whole
                assert apply(Model(case.model), whole).to_bytes() == data


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("external", [False, True])
def test_threads_do_not_change_a_byte(tmp_path: Path, scope: str, external: bool) -> None:
    proto = two_layers(np.random.default_rng(1), 1500).model
    path = (write_external if external else write)(proto, tmp_path / "m.onnx")
    written = []
    for threads in (1, 2, 3):
        report = emp_onnx.prune(path, tmp_path / "out.onnx", scope=scope, threads=threads, gzip=False)
        written.append([file.read_bytes() for file in (report.out, *report.sidecars)])
        assert [file.name for file in report.sidecars] == sorted(file.name for file in report.sidecars)
    assert written[0] == written[1] == written[2]
