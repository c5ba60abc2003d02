"""Short tensors taken together are what they are one by one; and what was written is known again."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import emp_onnx
from emp_onnx import Model
from emp_onnx.decide import decide
from emp_onnx.files import filling
from emp_onnx.files.again import load_again
from emp_onnx.files.model_io import load
from emp_onnx.files.patch import patched_each
from emp_onnx.files.short import batches
from emp_onnx.runtime.process import Process
from emp_onnx.weights.find import find_weights
from emp_onnx.weights.kept import Pruned

DTYPES = ["float32", "float64", "float16", "uint8", "int64"]


def tensors(sizes: list[int], dtypes: list[str], values: Any) -> Model:
    """A model with these tensors: raw, typed or of halves, between other bytes."""
    inits = []
    for i, (size, dtype) in enumerate(zip(sizes, dtypes, strict=True)):
        array = (values.standard_normal(size) * 3).astype(dtype)
        typed = dtype in ("float32", "float64") and i % 3 == 1
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        made = helper.make_tensor(f"t{i}", kind, [size], array) if typed else numpy_helper.from_array(array, f"t{i}")
        made.doc_string = "x" * (i * 977 % 5000)
        inits.append(made)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    return Model(helper.make_model(helper.make_graph(nodes, "g", [x], [y], inits)))


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.sampled_from(DTYPES)), min_size=1, max_size=12),
    st.integers(0, 99),
    st.data(),
)
def test_wholes_are_pieces(shapes: list[tuple[int, str]], seed: int, data: st.DataObject) -> None:
    model = tensors([n for n, _ in shapes], [d for _, d in shapes], np.random.default_rng(seed))
    keys = data.draw(st.lists(st.sampled_from(list(model.tensors)), max_size=20))
    for key, found in zip(keys, model.wholes(keys), strict=True):
        right = model.piece(key, 0, model.tensors[key].size)
        assert found.dtype == right.dtype
        assert found.tobytes() == right.tobytes()


@given(st.lists(st.integers(0, 40)), st.integers(1, 60))
def test_batches_are_all_in_order_and_not_too_much(sizes: list[int], most: int) -> None:
    found = [list(some) for some in batches(sizes, lambda size: size, most)]
    assert [size for some in found for size in some] == sizes
    assert all(some and (len(some) == 1 or sum(some) <= most) for some in found)
    assert all(sum(one) + other[0] > most for one, other in pairwise(found))


def chain(rng: Any, count: int, dtype: str = "float32", ties: bool = False) -> onnx.ModelProto:
    """Products with weights of 8 to 200 elements."""
    inits, nodes, last, width = [], [], "x", 4
    for i in range(count):
        after = int(rng.integers(2, 14))
        w = rng.integers(-2, 3, (width, after)) if ties else rng.standard_normal((width, after))
        inits.append(numpy_helper.from_array(w.astype(dtype), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        last, width = f"h{i}", after
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = helper.make_tensor_value_info("x", kind, [1, 4]), helper.make_tensor_value_info(last, kind, [1, width])
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], inits), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("ties", [False, True])
def test_patched_together_is_patched_alone(scope: str, dtype: str, ties: bool) -> None:
    model = Model(chain(np.random.default_rng(1), 30, dtype, ties))
    found = find_weights(model)
    decision = decide(model, found.weights, emp_onnx.Rule(scope=scope))
    patches = [Pruned(decision.weights[name], kept) for name, kept in decision.kept.items()]
    values = model.wholes(list(decision.kept))
    for patch, old, new in zip(patches, values, patched_each(patches, values), strict=True):
        assert new.dtype == old.dtype
        assert new.tobytes() == patch(0, old).tobytes()


@pytest.mark.parametrize("ties", [False, True])
def test_made_in_memory_or_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ties: bool) -> None:
    (tmp_path / "m.onnx").write_bytes(chain(np.random.default_rng(2), 20, ties=ties).SerializeToString())
    emp_onnx.prune(tmp_path / "m.onnx", tmp_path / "one.onnx")
    monkeypatch.setattr(filling, "SMALL", 0)
    monkeypatch.setattr(filling, "SHORT", 0)
    emp_onnx.prune(tmp_path / "m.onnx", tmp_path / "other.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_loaded_again_is_loaded(tmp_path: Path) -> None:
    """A written file that needs no second reading reads as if it had had one; any other is read."""
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(chain(np.random.default_rng(3), 5).SerializeToString())
    original = load(path)
    keys = frozenset(emp_onnx.prune(path, out).plan.total and {f"w{i}" for i in range(5)})
    quick, slow = load_again(out, original, keys), load(out)
    assert quick.cache
    assert not slow.cache
    assert (quick.tensors, quick.metadata, quick.graph.nodes) == (slow.tensors, slow.metadata, slow.graph.nodes)
    assert quick.rest(keys, "", frozenset()) == slow.rest(keys, "", frozenset())
    data = out.read_bytes()
    place = quick.stored("w0").place
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1
        out.write_bytes(changed)
        try:
            again = load_again(out, original, keys)
        except emp_onnx.ModelError:
            continue
        inside = any(s.place <= at < s.place + 4 * s.tensor.size for s in (original.stored(key) for key in keys))
        assert bool(again.cache) == (inside or at >= original.source.size)
    assert place > 0


def test_after_an_original_that_someone_wrote_to_it_is_read(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(chain(np.random.default_rng(3), 5).SerializeToString())
    original = load(path)
    emp_onnx.prune(path, out)
    os.utime(path, ns=(0, 0))
    assert not load_again(out, original, frozenset(original.tensors)).cache


def test_a_model_that_holds_more_is_read(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(chain(np.random.default_rng(3), 5).SerializeToString())
    out.write_bytes(path.read_bytes() + b"\x12\x01a")  # another producer's name at the end
    original = load(path)
    again = load_again(out, original, frozenset(original.tensors))
    assert not again.cache


def test_what_is_written_otherwise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that the disk holds otherwise than they were handed over: for the short and for the long."""
    rng = np.random.default_rng(0)
    w = helper.make_tensor("w", TensorProto.FLOAT, [100, 100], rng.standard_normal(10_000))
    x, y = (helper.make_tensor_value_info(name, 1, [1, 100]) for name in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    real = filling.put

    def wrong(handle: int, at: int, data: Any) -> None:
        changed = np.frombuffer(data, np.uint8).copy()
        if changed.size > 300:
            changed[changed.size // 2] ^= 1
        real(handle, at, changed.data)

    long = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [w]), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    for model in (long, chain(rng, 8)):
        path.write_bytes(model.SerializeToString())
        with monkeypatch.context() as patch:
            patch.setattr(filling, "put", wrong)
            with pytest.raises(emp_onnx.VerifyError, match="verification failed, nothing was written"):
                emp_onnx.prune(path, out)
        assert not out.exists()
        emp_onnx.prune(path, out)
        out.unlink()


@pytest.mark.parametrize("feeds", [None, [{"x": np.ones((1, 4), np.float32)}]])
def test_graphs_of_many_nodes_are_run_in_two_processes_and_come_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feeds: Any
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(chain(np.random.default_rng(4), 12).SerializeToString())
    before = emp_onnx.prune(path, tmp_path / "one.onnx", feeds=feeds)
    started = []
    real = Process.start

    def start(self: Process) -> bool:
        started.append(self)
        return real(self)

    monkeypatch.setattr(Process, "start", start)
    monkeypatch.setattr(sys.modules["emp_onnx.verification.running"], "MANY", 0)
    monkeypatch.setattr(sys.modules["emp_onnx.verification.running"], "SOME", 0)
    after = emp_onnx.prune(path, tmp_path / "other.onnx", feeds=feeds)
    assert len({id(process) for process in started}) == 2
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()
    one, other = before.verification.behaviour, after.verification.behaviour
    assert one is not None
    assert other is not None
    assert (one.feeds, one.random, other.problems) == (other.feeds, other.random, ())
    assert other.outputs[0].relative == pytest.approx(one.outputs[0].relative, rel=1e-4)


def test_a_long_graph_that_onnxruntime_refuses_is_said_to_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["emp_onnx.verification.running"], "MANY", 0)
    monkeypatch.setattr(sys.modules["emp_onnx.verification.running"], "SOME", 0)
    model = chain(np.random.default_rng(4), 12)
    model.graph.node.append(helper.make_node("NoSuchThing", ["x"], ["z"]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    report = emp_onnx.prune(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert report.verification.ok
    assert "onnxruntime cannot load it" in report.verification.not_run
