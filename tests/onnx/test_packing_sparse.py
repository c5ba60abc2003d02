"""Sparse initializers, whoever wrote them, as any other form, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx import find_weights, from_scipy, load, pack, to_scipy, unpack
from emp_onnx.packing.forms import FORMS
from tests.onnx.builders import write
from tests.onnx.test_sparse import proto_of, sparses, wrapped


def outputs(path: Path, rows: int) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).standard_normal((2, rows)).astype(np.float32)
    return session.run(None, {"x": x})[0].tobytes()


def some(tmp_path: Path, density: float, index: type = np.int64, columns: bool = False) -> tuple[Path, Any]:
    """A model with a sparse weight of 160 × 96, one entry a stored zero and one −0.0."""
    rng = np.random.default_rng(5)
    dense = rng.standard_normal((160, 96)).astype(np.float32)
    dense[rng.random(dense.shape) >= density] = 0
    places = np.flatnonzero(dense)
    values = dense.reshape(-1)[places]
    values[0], values[1] = 0.0, -0.0
    dense.reshape(-1)[places] = values
    at = (np.stack(np.unravel_index(places, dense.shape), 1) if columns else places).astype(index)
    proto = wrapped(proto_of(values, at, dense.shape), "initializer")
    proto.graph.output[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
    for size in (2, 96):
        proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=size)
    return write(proto, tmp_path / f"{density}.onnx"), dense


@settings(max_examples=15, deadline=None)
@given(sparses(), st.sampled_from(FORMS), st.booleans(), st.booleans())
def test_any_sparse_weight_keeps_its_bits_in_any_form(
    tmp_path_factory: pytest.TempPathFactory, case: Any, form: str, compact: bool, web: bool
) -> None:
    proto, dense = case
    folder = tmp_path_factory.mktemp("m")
    path = write(proto, folder / "m.onnx")
    target = "onnxruntime-web" if web else "onnxruntime"
    done = pack(path, folder / "p.onnx", form=form, compact_indices=compact, target=target)
    assert done.verification.ok
    assert load(done.out).values("w").tobytes() == dense.tobytes()
    plain = unpack(done.out, folder / "u.onnx")
    proto = onnx.load(plain.out)
    assert not proto.graph.sparse_initializer
    assert load(plain.out).tensors["w"].storage == "raw"
    assert load(plain.out).values("w").tobytes() == dense.tobytes()


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("density", [0.03, 0.5])
def test_sparse_weights_become_dense_packed_or_compact(tmp_path: Path, density: float, columns: bool) -> None:
    path, dense = some(tmp_path, density, columns=columns)
    stored = int(np.count_nonzero(dense.view(np.uint32)))
    wanted = outputs(unpack(path, tmp_path / "dense.onnx").out, 160)
    for form, compact in (("auto", False), ("packed", False), ("coo", False), ("coo", True)):
        done = pack(path, tmp_path / "out.onnx", form=form, compact_indices=compact)
        assert outputs(done.out, 160) == wanted
        assert [check.what for check in done.verification.checks][:2] == [
            "every tensor is as before, bit for bit", "nothing else differs"
        ]  # fmt: skip
        if form == "auto":
            assert done.after < done.before
        if form == "coo" and density < 0.3:
            index = onnx.load(done.out).graph.sparse_initializer[0].indices
            assert (index.dims, index.data_type) == ([stored], 5 if compact else 7)


def test_narrow_indices_stay_unless_something_is_smaller(tmp_path: Path) -> None:
    path, dense = some(tmp_path, 0.004, np.int32)
    done = pack(path, tmp_path / "out.onnx")
    assert done.rows[0].form == "coo, int32"
    assert not any("dense" in row.form for row in done.rows)
    wide = pack(done.out, tmp_path / "wide.onnx", form="coo")
    assert onnx.load(wide.out).graph.sparse_initializer[0].indices.data_type == onnx.TensorProto.INT64
    onnx.checker.check_model(str(wide.out))
    assert load(wide.out).values("w").tobytes() == dense.tobytes()
    assert find_weights(load(path)).refusals == ()


def test_a_target_that_reads_no_sparse_tensors_gets_none(tmp_path: Path) -> None:
    path, dense = some(tmp_path, 0.004)
    for target in ("onnxruntime-web", "checker-strict"):
        done = pack(path, tmp_path / "out.onnx", target=target)
        proto = onnx.load(done.out)
        assert not proto.graph.sparse_initializer
        onnx.checker.check_model(str(done.out), full_check=True)
        assert load(done.out).values("w").tobytes() == dense.tobytes()
        assert any("larger" in note for note in done.notes) == (done.after >= done.before)


def test_what_is_not_as_it_must_be_stays_and_the_table_says_why(tmp_path: Path) -> None:
    sparse = proto_of(np.ones(300, np.float32), np.arange(300)[::-1].copy(), (40, 40))
    path = write(wrapped(sparse, "initializer"), tmp_path / "m.onnx")
    for done in (pack(path, tmp_path / "a.onnx"), unpack(path, tmp_path / "b.onnx")):
        (row,) = done.rows
        assert row.form.startswith("coo")
        assert "ascend" in row.why
        assert done.out.read_bytes() == path.read_bytes()


def test_a_sparse_weight_takes_any_values_from_scipy(tmp_path: Path) -> None:
    path, dense = some(tmp_path, 0.03)
    model = load(path)
    other, _ = some(tmp_path, 0.9)
    full = to_scipy(load(other))
    for form in ("dense", "coo", "packed"):
        assert from_scipy(model, full, form=form).values("w").tobytes() == load(other).values("w").tobytes()
    assert dense.size == model.tensors["w"].size
