"""Reading and patching by position: what onnx itself reads, and what a protobuf rewrite would write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import emp_onnx
from emp_onnx import Model, ModelError, apply, load, plan, save
from emp_onnx.files.graph import Graph
from emp_onnx.files.source import Memory
from emp_onnx.files.wire import Edit, Wire, varint
from tests.onnx.builders import Case, cases, model, tensor, two_layers, value, write, write_external

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(3)
DTYPES = [
    np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint32, np.uint64, np.bool_,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4,
]  # fmt: skip


def numbers(dtype: Any, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu" or np.dtype(dtype).name in ("int4", "uint4"):
        low = 0 if "u" in np.dtype(dtype).name else -8
        return rng.integers(low, 8, shape).astype(dtype)
    made = np.asarray(rng.standard_normal(shape))
    return (made > 0 if dtype is np.bool_ else made).astype(dtype) if shape else np.array(made > 0).astype(dtype)


def proto_of(name: str, array: np.ndarray[Any, Any], raw: bool) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    if raw:
        return numpy_helper.from_array(array, name)
    return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())


@settings(max_examples=80)
@given(
    st.sampled_from(DTYPES), st.booleans(), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99), st.booleans()
)
def test_values_of_every_type_and_storage(dtype: Any, raw: bool, dims: list[int], seed: int, constant: bool) -> None:
    array = numbers(dtype, tuple(dims), seed)
    item = proto_of("w", array, raw)
    nodes = [helper.make_node("Constant", [], ["w"], value=item)] if constant else []
    made = model([*nodes, helper.make_node("Shape", ["w"], ["y"])], [], [value("y", None)], [] if constant else [item])
    loaded = Model(made)
    tensor_ = loaded.graph.nodes[0].constant if constant else loaded.graph.tensors["w"]
    assert tensor_ is not None
    assert (tensor_.key, tensor_.shape) == ("w", tuple(dims))
    seen = loaded.values("w")
    assert seen.dtype == array.dtype
    assert seen.tobytes() == array.tobytes()
    assert seen.tobytes() == numpy_helper.to_array(item).astype(dtype).tobytes()
    # patched: onnx reads the new values, and nothing else differs
    new = numbers(dtype, tuple(dims), seed + 1)
    after = onnx.ModelProto.FromString(loaded.replaced({"w": new}, {"key": "text"}).to_bytes())
    head = after.graph.node[0].attribute[0].t if constant else after.graph.initializer[0]
    assert numpy_helper.to_array(head).astype(dtype).tobytes() == new.tobytes()
    head.CopyFrom(item)
    del after.metadata_props[:]
    assert after.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)


def same_graph(graph: Graph, proto: Any) -> None:
    assert graph.inputs == tuple(i.name if hasattr(i, "name") else i for i in proto.input)
    assert graph.outputs == tuple(o.name if hasattr(o, "name") else o for o in proto.output)
    assert len(graph.nodes) == len(proto.node)
    for node, other in zip(graph.nodes, proto.node, strict=True):
        assert (node.op, node.name) == (other.op_type, other.name)
        assert (node.inputs, node.outputs) == (tuple(other.input), tuple(other.output))
        for attribute in other.attribute:
            if attribute.type == 2 and not attribute.ref_attr_name:
                assert node.attributes[attribute.name] == attribute.i
            elif attribute.type == 7:
                assert node.attributes[attribute.name] == tuple(attribute.ints)
        bodies = [b for a in other.attribute for b in ([a.g] if a.type == 5 else a.graphs)]
        assert len(bodies) == len(node.bodies)
        for body, inner in zip(node.bodies, bodies, strict=True):
            same_graph(body, inner)
    if hasattr(proto, "initializer"):
        assert [(t.name, t.shape) for t in graph.tensors.values()] == list(
            {t.name: (t.name, tuple(t.dims)) for t in proto.initializer}.values()
        )


@settings(max_examples=30)
@given(cases())
def test_graphs_are_what_onnx_reads(case: Case) -> None:
    same_graph(Model(case.model).graph, case.model.graph)


@pytest.mark.parametrize("path", sorted((ROOT.parent / "shared" / "models").glob("*.onnx")), ids=lambda p: p.stem)
def test_shared_models_are_what_onnx_reads(path: Path) -> None:
    loaded, proto = load(path), onnx.load(path)
    same_graph(loaded.graph, proto.graph)
    for item in list(proto.graph.initializer)[:20]:
        assert loaded.values(item.name).tobytes() == numpy_helper.to_array(item).tobytes()


def test_numbers_written_one_by_one_are_patched_where_they_lie() -> None:
    w = RNG.standard_normal((5, 3)).astype(np.float32)
    head = TensorProto(name="w", dims=w.shape, data_type=1).SerializeToString()
    loose = head + b"".join(b"\x25" + x.tobytes() for x in w.ravel())
    graph = b"\x2a" + varint(len(loose)) + loose + b"\x62\x03\x0a\x01y"
    data = b"\x08\x08\x3a" + varint(len(graph)) + graph
    assert Model(data).values("w").tobytes() == w.tobytes()
    changed = Model(data).replaced({"w": w * 2}, {}).to_bytes()
    assert len(changed) == len(data)
    read = onnx.ModelProto.FromString(changed).graph.initializer[0]
    assert np.array(read.float_data, np.float32).tobytes() == (w * 2).tobytes()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.data())
def test_edits_change_lengths_around_them_and_nothing_else(texts: list[bytes], data: st.DataObject) -> None:
    proto = model([], [], [value("y", None)])
    for text in texts:
        proto.metadata_props.add(key="k", value=text.hex())
    before = proto.SerializeToString()
    i = data.draw(st.integers(0, len(texts) - 1))
    new = data.draw(st.text(max_size=400))
    wire = Wire(Memory(before))
    entries = [(at, end) for number, _, at, _, end in wire.fields(0, len(before)) if number == 14]
    places = [(at, end) for number, _, at, _, end in wire.fields(*entries[i]) if number == 2]
    pieces, length = wire.edited(0, len(before), [Edit(*places[0], new.encode())])
    after = b"".join(p if isinstance(p, bytes) else before[p[0] : p[1]] for p in pieces)
    proto.metadata_props[i].value = new
    assert after == proto.SerializeToString()
    assert length == len(after)


@pytest.mark.parametrize("storage", ["raw", "typed"])
def test_only_pruned_bytes_and_the_certificate_differ(tmp_path: Path, storage: str) -> None:
    w = RNG.standard_normal((40, 30)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = model([node], [value("x", ["N", 40])], [value("y", None)], [tensor("w", w, storage)])
    path = write(proto, tmp_path / "m.onnx")
    source = load(path)
    save(apply(source, plan(source)), tmp_path / "out.onnx")
    before, after = path.read_bytes(), (tmp_path / "out.onnx").read_bytes()
    assert after[len(before) :].startswith(b"\x72")
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after[: len(before)], np.uint8))
    start = before.index(w.tobytes())
    assert changed.size
    assert start <= changed.min()
    assert changed.max() < start + w.nbytes


def test_a_sparse_sidecar_stays_sparse(tmp_path: Path) -> None:
    path = write_external(two_layers(RNG, 40).model, tmp_path / "m.onnx")
    sidecar = tmp_path / "m.onnx.weights"
    with open(sidecar, "rb+") as file:
        file.truncate(1 << 26)
    if sidecar.stat().st_blocks * 512 > 1 << 24:
        pytest.skip("this file system has no holes")
    report = emp_onnx.prune(path, tmp_path / "out.onnx", gzip=False)
    assert report.sidecars[0].stat().st_size == 1 << 26
    assert report.sidecars[0].stat().st_blocks * 512 < 1 << 24


def test_weights_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = write_external(two_layers(RNG).model, tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[1].external_data:
        if entry.key == "offset":
            entry.value = "4"
    write(proto, path)
    with pytest.raises(ModelError, match="must have its bytes to itself"):
        emp_onnx.prune(path, gzip=False)


def test_a_graph_of_too_many_nodes_is_refused(tmp_path: Path) -> None:
    node = b"\x0a\x0a" + helper.make_node("Relu", ["x"], ["y"]).SerializeToString()[:10]
    graph = node * 300_001
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + varint(len(graph)) + graph)
    with pytest.raises(ModelError, match="at most 300000 nodes"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("bad", ["fifo", "folder"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "m.onnx"
    os.mkfifo(path) if bad == "fifo" else path.mkdir()
    with pytest.raises(ModelError, match=r"must be (a plain|an ONNX) file"):
        load(path)


def test_a_file_that_becomes_shorter_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = write_external(two_layers(RNG).model, tmp_path / "m.onnx")
    source = load(path)
    assert source.values("a").size
    os.truncate(tmp_path / "m.onnx.weights", 8)
    with pytest.raises(ModelError, match="became shorter"):
        source.values("a")


@pytest.mark.parametrize("external", [False, True])
def test_a_process_killed_at_any_moment_leaves_old_or_new(tmp_path: Path, external: bool) -> None:
    proto = two_layers(RNG, 300).model
    path = (write_external if external else write)(proto, tmp_path / "m.onnx")
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    script = "import sys; from emp_onnx.cli import main; print('ready', flush=True); main(sys.argv[1:])"
    command = [sys.executable, "-c", script, "prune", str(path), "--in-place", "--quiet"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
        for name, data in old.items():
            (tmp_path / name).write_bytes(data)
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        if path.read_bytes() == old["m.onnx"]:
            assert all((tmp_path / name).read_bytes() == data for name, data in old.items())
        else:
            assert emp_onnx.verify(path).ok
