"""Sparse weights: the dense ones that they stand for, pruned, with fewer entries and nothing else changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

import emp_onnx
from emp_onnx import Model, apply, find_weights, plan, verify
from tests.onnx.builders import Case, expected_masks, hash_mask, model, tensor, value, write

Array = NDArray[Any]


def proto_of(values: Array, places: Array, shape: tuple[int, ...], storage: str = "raw") -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=shape)
    made.values.CopyFrom(tensor("w", values, storage))
    made.indices.CopyFrom(tensor("", places, storage))
    return made


def dense_of(sparse: onnx.SparseTensorProto) -> Array:
    """What onnx itself says that it is, element by element."""
    values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    for i, v in enumerate(values):
        out[tuple(indices[i]) if indices.ndim == 2 else np.unravel_index(indices[i], out.shape)] = v
    return out


def wrapped(sparse: onnx.SparseTensorProto, home: str) -> onnx.ModelProto:
    kind = sparse.values.data_type
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mm")
    x = value("x", [2, sparse.dims[0]], kind)
    if home == "initializer":
        return model([node], [x], [value("y", None, kind)], sparse_initializer=[sparse])
    constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse)
    return model([constant, node], [x], [value("y", None, kind)])


def there(proto: onnx.ModelProto) -> onnx.SparseTensorProto:
    found: onnx.SparseTensorProto = (
        proto.graph.sparse_initializer[0] if proto.graph.sparse_initializer else
        proto.graph.node[0].attribute[0].sparse_tensor
    )  # fmt: skip
    return found


@st.composite
def sparses(draw: st.DrawFn) -> tuple[onnx.ModelProto, Array]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    size = shape[0] * shape[1]
    count = draw(st.integers(1, size))
    places = np.sort(rng.choice(size, count, replace=False)).astype(np.int64)
    values = rng.integers(-5, 6, count) / 4 if draw(st.booleans()) else rng.standard_normal(count)
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    if draw(st.booleans()):
        places = np.stack(np.unravel_index(places, shape), axis=1).astype(np.int64)
    sparse = proto_of(values.astype(dtype), places, shape, draw(st.sampled_from(["raw", "typed"])))
    return wrapped(sparse, draw(st.sampled_from(["initializer", "constant"]))), dense_of(sparse)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sparses(), st.sampled_from(["tensor", "row", "model"]), st.sampled_from([0.5, 1.0, 1.7]))
def test_any_sparse_weight(case: tuple[onnx.ModelProto, Array], scope: str, beta: float) -> None:
    proto, dense = case
    source = Model(proto)
    made = plan(source, scope=scope, beta=beta)
    masks = expected_masks(Case(proto, {"w": dense}, {"w": lambda i: i[1]}), scope=scope, beta=beta)
    if not masks:
        assert [r.code for r in made.refusals] == ["zeros"]
        return
    assert [(e.shape, e.n, e.kept_sha256) for e in made.entries] == [(dense.shape, dense.size, hash_mask(masks["w"]))]
    pruned = apply(source, made)
    before, after = there(proto), there(onnx.ModelProto.FromString(pruned.to_bytes()))
    wanted = np.where(masks["w"], dense, 0).astype(dense.dtype)
    assert dense_of(after).tobytes() == wanted.tobytes() == pruned.values("w").tobytes()
    if np.count_nonzero(wanted) < np.count_nonzero(dense):
        assert after.values.dims[0] == max(1, np.count_nonzero(wanted))
        assert len(after.SerializeToString()) < len(before.SerializeToString())
    else:
        assert after.SerializeToString() == before.SerializeToString()
    assert after.indices.dims[0] == after.values.dims[0]
    assert len(after.indices.dims) == len(before.indices.dims)
    assert after.values.HasField("raw_data") == before.values.HasField("raw_data")
    assert (after.values.name, list(after.dims)) == ("w", list(before.dims))
    done = verify(pruned, source)
    assert done.ok, done.faults
    assert plan(pruned, scope=scope, beta=beta).entries


def test_the_file_is_smaller_runs_and_verifies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = np.sort(rng.choice(6400, 1600, replace=False)).astype(np.int64)
    sparse = proto_of(rng.standard_normal(1600).astype(np.float32), places, (80, 80))
    path, out = write(wrapped(sparse, "initializer"), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    report = emp_onnx.prune(path, out)
    assert report.verification.behaviour is not None
    assert out.stat().st_size < 0.75 * path.stat().st_size
    assert emp_onnx.verify(out, path).ok
    # whoever moves one entry, or adds one, is found out
    for change in ("move", "add", "value"):
        proto = onnx.load(out)
        changed = proto.graph.sparse_initializer[0]
        values, indices = (onnx.numpy_helper.to_array(t).copy() for t in (changed.values, changed.indices))
        if change == "move":
            indices[-1] = indices[-1] + 1 if indices[-1] < 6399 else indices[-1] - 1
        elif change == "add":
            indices = np.array([i for i in range(6400) if i not in set(indices.tolist())][:1] + indices.tolist())
            values = np.concatenate([[np.float32(1)], values])[np.argsort(indices)]
            indices.sort()
        else:
            values[3] *= 2
        changed.CopyFrom(proto_of(values.astype(np.float32), indices, (80, 80)))
        assert not emp_onnx.verify(write(proto, tmp_path / "bad.onnx"), path).ok, change


def test_values_in_a_sidecar_become_stored_zeros(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    places, values = np.arange(0, 60, 3, dtype=np.int64), rng.standard_normal(20).astype(np.float32)
    sparse = proto_of(values, places, (10, 6))
    (tmp_path / "side.bin").write_bytes(values.tobytes())
    sparse.values.ClearField("raw_data")
    sparse.values.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "side.bin"), ("offset", "0"), ("length", "80")):
        sparse.values.external_data.add(key=key, value=text)
    path, out = write(wrapped(sparse, "initializer"), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    source = emp_onnx.load(path)
    made = plan(source)
    case = Case(onnx.load(path, load_external_data=False), {"w": source.values("w")}, {"w": lambda i: i[1]})
    mask = expected_masks(case, scope="tensor")
    emp_onnx.prune(path, out)
    after = np.fromfile(next(tmp_path.glob("out.onnx.*.data")), np.float32)
    assert after.tolist() == np.where(mask["w"].reshape(-1)[places], values, 0).tolist()
    assert emp_onnx.verify(out, path).ok
    assert made.entries[0].n == 60


@pytest.mark.parametrize(
    ("places", "shape", "words"),
    [
        ([3, 1, 2], (4, 2), "must ascend"),
        ([1, 1, 2], (4, 2), "must ascend"),
        ([1, 2, 8], (4, 2), "must ascend"),
        ([-1, 2, 3], (4, 2), "must ascend"),
        ([1, 2], (4, 2), r"indices must be int64 .*of shape \(3,\)"),
        ([[0, 0], [1, 3], [2, 0]], (4, 2), "must lie within"),
        ([1, 2, 3], (1 << 20, 1 << 20), "so sparse a weight"),
        ([1, 2, 3], (1 << 62, 1 << 62), "so sparse a weight"),
    ],
)
def test_entries_that_are_none_are_refused(places: list[int], shape: tuple[int, ...], words: str) -> None:
    sparse = proto_of(np.ones(3, np.float32), np.array(places, np.int64), shape)
    (refused,) = find_weights(Model(wrapped(sparse, "initializer"))).refusals
    assert refused.code == "sparse"
    assert re.search(words, refused.reason)


def test_a_weight_of_which_nothing_is_left_keeps_one_stored_zero() -> None:
    rng = np.random.default_rng(2)
    sparse = proto_of(np.full(5, 1e-6, np.float32), np.arange(5), (4, 4))
    proto = wrapped(sparse, "initializer")
    proto.graph.node.append(helper.make_node("MatMul", ["y", "big"], ["z"]))
    proto.graph.initializer.append(tensor("big", rng.standard_normal((4, 64)).astype(np.float32)))
    source = Model(proto)
    pruned = apply(source, plan(source, scope="model"))
    left = there(onnx.ModelProto.FromString(pruned.to_bytes()))
    assert onnx.numpy_helper.to_array(left.values).tolist() == [0.0]
    assert verify(pruned, source).ok
