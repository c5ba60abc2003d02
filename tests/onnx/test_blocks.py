"""Weights packed in blocks: found, scored, pruned and run as a slow decoder says, one element at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

import emp_onnx
from emp_onnx import Model, find_weights, plan
from emp_onnx.files import coded
from emp_onnx.files.coded import Coded, CodeLayout
from emp_onnx.weights.blocks import TABLES
from tests.onnx.builders import Case, expected_masks, hash_mask, model, tensor, value, write, write_external

MS = "com.microsoft"
Array = NDArray[Any]


@dataclass
class Blocked:
    """A model with one packed weight `w`, and everything about it that the slow decoder needs."""

    proto: onnx.ModelProto
    bits: int
    codes: Array  # of the weight
    zero: Array  # the code of 0, elementwise
    dense: Array  # what the codes stand for, float64
    axes: tuple[int, ...]
    stride: int
    high: bool = False
    feed: dict[str, Array] = field(default_factory=dict)
    flip: bool = False


def pack(codes: Array, bits: int, stride: int, rng: np.random.Generator, high: bool = False) -> Array:
    """The codes of each row, filled up with anything to `stride` codes, in bytes."""
    out = []
    for row in codes.reshape(-1, codes.shape[-1]).tolist():
        row = [*row, *rng.integers(0, 2**bits, stride - len(row)).tolist()]
        out += row
    out += [0] * (-len(out) % (8 // bits))
    whole = []
    for i in range(0, len(out), 8 // bits):
        some = out[i : i + 8 // bits]
        whole.append(sum(c << (bits * j) for j, c in enumerate(reversed(some) if high else some)))
    return np.array(whole, np.uint8)


def unpack(raw: Array, bits: int, shape: tuple[int, ...], stride: int, high: bool = False) -> tuple[Array, list[int]]:
    """The codes of the weight, and those that fill up its rows."""
    each = [[(int(b) >> (bits * j)) & (2**bits - 1) for j in range(8 // bits)] for b in raw.reshape(-1)]
    codes = [c for some in each for c in (reversed(some) if high else some)]
    rows, width = int(np.prod(shape[:-1])), shape[-1]
    inside = [codes[r * stride : r * stride + width] for r in range(rows)]
    rest = [c for r in range(rows) for c in codes[r * stride + width : (r + 1) * stride]]
    return np.array(inside, np.uint8).reshape(shape), rest + codes[rows * stride :]


def nbits(
    rng: np.random.Generator, bits: int, k: int, n: int, block: int, points: str, dtype: Any = np.float32,
    groups: bool = False, flat: bool = False, extra: dict[str, int] | None = None,
) -> Blocked:  # fmt: skip
    count = -(-k // block)
    codes = rng.integers(0, 2**bits, (n, k)).astype(np.uint8)
    scale = (rng.integers(1, 64, (n, count)) / 64).astype(dtype)
    point = rng.integers(0, 2**bits, (n, count))
    if points == "none":
        point = np.full((n, count), 2 ** (bits - 1))
    g = rng.integers(0, count, k).astype(np.int32) if groups else np.arange(k) // block
    blob = pack(codes, bits, count * block, rng).reshape(n, count, block * bits // 8)
    inits, names = [tensor("w", blob), tensor("s", scale.reshape(-1) if flat else scale)], ["x", "w", "s"]
    if points == "packed":
        wide = -(-count * bits // 8) * 8 // bits
        raw = pack(point.astype(np.uint8), bits, wide, rng)
        inits.append(tensor("z", raw if flat else raw.reshape(n, -1)))
    elif points == "float":
        inits.append(tensor("z", point.astype(dtype)))
    names += ["z"] if points != "none" else [""]
    if groups:
        inits.append(tensor("g", g))
        names.append("g")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, **(extra or {})}
    node = helper.make_node("MatMulNBits", names, ["y"], "mm", domain=MS, **attributes)
    proto = model([node], [value("x", [2, k], kind)], [value("y", None, kind)], inits, opset=17)
    zero = point[:, g]
    dense = (codes.astype(np.float64) - zero) * scale.astype(np.float64)[:, g]
    feed = {"x": rng.integers(-4, 5, (2, k)).astype(dtype)}
    return Blocked(proto, bits, codes, zero, dense, (0,), count * block, feed=feed)


def bnb4(rng: np.random.Generator, k: int, n: int, block: int, kind: int, flip: bool = False) -> Blocked:
    table = TABLES[kind][1]
    codes = rng.integers(0, 16, (n, k)).astype(np.uint8)
    scale = (rng.integers(1, 64, -(-n * k // block)) / 64).astype(np.float32)
    dense = table[codes] * np.repeat(scale.astype(np.float64), block)[: n * k].reshape(n, k)
    blob = pack(codes.reshape(1, -1), 4, n * k, rng, high=True)
    attributes = {"K": k, "N": n, "quant_type": kind, "block_size": block, **({"transB": 0} if flip else {})}
    node = helper.make_node("MatMulBnb4", ["x", "w", "s"], ["y"], "mm", domain=MS, **attributes)
    wide = n if flip else k
    proto = model([node], [value("x", [2, wide])], [value("y", None)], [tensor("w", blob), tensor("s", scale)],
                  opset=17)  # fmt: skip
    feed = {"x": rng.integers(-4, 5, (2, wide)).astype(np.float32)}
    return Blocked(proto, 4, codes, np.full((n, k), TABLES[kind][2]), dense, (1 if flip else 0,), n * k, True, feed,
                   flip)  # fmt: skip


@st.composite
def blocked(draw: st.DrawFn) -> Blocked:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k, n = draw(st.integers(1, 70)), draw(st.integers(1, 5))
    block = draw(st.sampled_from([16, 32, 64]))
    if draw(st.integers(0, 3)) == 0:
        return bnb4(rng, k, n, block, draw(st.integers(0, 1)), draw(st.booleans()))
    points = draw(st.sampled_from(["none", "packed", "float"]))
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    bits = draw(st.sampled_from([2, 4, 8]))
    return nbits(rng, bits, k, n, block, points, dtype, draw(st.booleans()), draw(st.booleans()))


def check(case: Blocked, folder: Path, scope: str, beta: float, storage: str) -> Array:
    """Prune in a file, and compare every code with the slow decoder's; returns the new dense weight."""
    for item in case.proto.graph.initializer:
        if storage == "typed" and item.name == "w":
            item.CopyFrom(tensor("w", onnx.numpy_helper.to_array(item), "typed"))
    path = (write_external if storage == "external" else write)(case.proto, folder / "m.onnx")
    (found,) = find_weights(emp_onnx.load(path)).weights
    assert (found.name, found.shape) == ("w", case.codes.shape)
    oracle = Case(case.proto, {"w": case.dense}, {"w": lambda i: tuple(i[a] for a in case.axes)})
    masks = expected_masks(oracle, scope=scope, beta=beta)
    source = emp_onnx.load(path)
    made = plan(source, scope=scope, beta=beta)
    if not masks:
        assert [r.code for r in made.refusals] == ["zeros"]
        return case.dense
    assert [entry.kept_sha256 for entry in made.entries] == [hash_mask(masks["w"])]
    out = folder / "out.onnx"
    report = emp_onnx.prune(path, out, scope=scope, beta=beta, gzip=False)
    assert emp_onnx.verify(out, path).ok
    unhashed = [dataclasses.replace(e, sha256="", kept_sha256="") for e in made.entries]
    assert report.plan == dataclasses.replace(made, entries=tuple(unhashed))
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    after = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    assert all(np.array_equal(before[name], after[name]) for name in before if name != "w")
    shape = (1, case.codes.size) if case.high else case.codes.shape
    codes, fill = unpack(after["w"], case.bits, shape, case.stride, case.high)
    assert np.array_equal(codes.reshape(case.codes.shape), np.where(masks["w"], case.codes, case.zero))
    assert fill == unpack(before["w"], case.bits, shape, case.stride, case.high)[1]
    assert out.stat().st_size <= path.stat().st_size + 4096
    for file in folder.iterdir():
        file.unlink()
    return np.where(masks["w"], case.dense, 0.0)


@settings(max_examples=18, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
@given(blocked(), st.sampled_from(["tensor", "row", "model"]), st.sampled_from([0.5, 1.0, 1.6]),
       st.sampled_from(["raw", "external", "typed"]))  # fmt: skip
def test_any_packed_weight(tmp_path: Path, case: Blocked, scope: str, beta: float, storage: str) -> None:
    check(case, tmp_path, scope, beta, storage)


def run(proto: onnx.ModelProto, feed: dict[str, Array]) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out: Array = session.run(None, feed)[0]
    return out


CASES = {
    "4 bits": lambda rng: nbits(rng, 4, 64, 6, 32, "none"),
    "4 bits, filled up": lambda rng: nbits(rng, 4, 41, 5, 16, "packed"),
    "4 bits, float zero points": lambda rng: nbits(rng, 4, 64, 6, 16, "float"),
    "8 bits": lambda rng: nbits(rng, 8, 64, 6, 32, "none"),
    "8 bits, filled up": lambda rng: nbits(rng, 8, 50, 6, 32, "packed"),
    "2 bits": lambda rng: nbits(rng, 2, 64, 6, 32, "packed"),
    "fp4": lambda rng: bnb4(rng, 33, 5, 16, 0),
    "nf4": lambda rng: bnb4(rng, 33, 5, 16, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_computes_what_the_slow_decoder_says(name: str, tmp_path: Path) -> None:
    case = CASES[name](np.random.default_rng(1))
    source = Model(case.proto)
    x = case.feed["x"].astype(np.float64)
    pruned = onnx.ModelProto.FromString(emp_onnx.apply(source, plan(source)).to_bytes())
    for proto, dense in ((case.proto, case.dense), (pruned, check(case, tmp_path, "tensor", 1.0, "raw"))):
        want = x @ (dense if case.flip else dense.T)
        assert np.allclose(run(proto, case.feed), want, rtol=1e-5, atol=1e-4)


def test_real_weights_through_onnxruntime_s_own_quantiser(tmp_path: Path) -> None:
    """A float MatMul, quantised by onnxruntime, pruned here, and run: near the float product with the same mask."""
    quantiser = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((96, 24)).astype(np.float32), rng.standard_normal((5, 96)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mm")
    for bits, symmetric in ((4, True), (4, False), (8, True)):
        proto = model([node], [value("x", [5, 96])], [value("y", None)], [tensor("w", w)], opset=17)
        made = quantiser.MatMulNBitsQuantizer(proto, bits=bits, block_size=32, is_symmetric=symmetric)
        made.process()
        path = write(made.model.model, tmp_path / "q.onnx")
        report = emp_onnx.prune(path, tmp_path / "out.onnx")
        assert report.verification.ok
        assert report.verification.behaviour is not None
        entry = report.plan.entries[0]
        assert (entry.shape, entry.dtype, entry.n) == ((24, 96), f"uint{bits}", 96 * 24)
        assert 0.55 < entry.k / entry.n < 0.72  # 2/π for normal weights, and what is rounded to zero
        kept = np.sort(np.abs(w).reshape(-1))[-entry.k]
        want = x.astype(np.float64) @ np.where(np.abs(w) >= kept, w, 0)
        got = run(onnx.load(tmp_path / "out.onnx"), {"x": x})
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < (0.2 if bits == 4 else 0.03)


def refusal(case: Blocked) -> tuple[str, str]:
    found = find_weights(Model(case.proto))
    assert not found.weights
    return found.refusals[0].code, found.refusals[0].reason


def changed(case: Blocked, **attributes: int) -> Blocked:
    for name, number in attributes.items():
        kept = [a for a in case.proto.graph.node[0].attribute if a.name != name]
        del case.proto.graph.node[0].attribute[:]
        case.proto.graph.node[0].attribute.extend([*kept, helper.make_attribute(name, number)])
    return case


def test_what_cannot_be_packed_is_refused_with_the_reason() -> None:
    rng = np.random.default_rng(3)

    def made(**options: Any) -> Blocked:
        return nbits(rng, 4, 40, 3, 16, options.pop("points", "none"), **options)

    assert "3 bits" in refusal(changed(made(), bits=3))[1]
    assert "power of 2, 16 or more, got 24" in refusal(changed(made(), block_size=24))[1]
    assert "got 8" in refusal(changed(made(), block_size=8))[1]
    assert "sizes ≥ 1 (K, N), got (0, 3)" in refusal(changed(made(), K=0))[1]
    assert "72 bytes of codes are needed" not in refusal(changed(made(), K=400))[1]
    assert "bytes of codes are needed for (400, 40)" in refusal(changed(made(), N=400))[1]
    assert "weight_prepacked" in refusal(changed(made(), weight_prepacked=1))[1]
    assert "FP4" in refusal(changed(bnb4(rng, 16, 3, 16, 0), quant_type=2))[1]
    case = made(points="float")
    z = onnx.numpy_helper.to_array(case.proto.graph.initializer[2]) + np.float32(0.5)
    case.proto.graph.initializer[2].CopyFrom(tensor("z", z))
    assert refusal(case) == ("point", "its zero points are not all among its codes, so no code stands for exactly 0")
    case.proto.graph.initializer[2].CopyFrom(tensor("z", z * np.float32("nan")))
    assert "not finite" in refusal(case)[1]
    del case.proto.graph.initializer[2]
    case.proto.graph.input.append(value("z", [3, 3]))
    assert "zero points are computed" in refusal(case)[1]
    case = made()
    case.proto.graph.initializer[1].CopyFrom(tensor("s", np.ones(5, np.float32)))
    assert refusal(case) == ("point", "its scales must be (3, 3), got (5,)")
    case = made(groups=True)
    case.proto.graph.initializer[2].CopyFrom(tensor("g", np.full(40, 9, np.int32)))
    assert "g_idx" in refusal(case)[1]
    case = made()
    case.proto.graph.node.insert(0, helper.make_node("Transpose", ["w"], ["v"], perm=[0, 1, 2]))
    case.proto.graph.node[1].input[1] = "v"
    assert "moved on their way" in refusal(case)[1]


def test_two_uses_must_agree() -> None:
    rng = np.random.default_rng(4)
    case = nbits(rng, 4, 64, 4, 32, "none")
    node = case.proto.graph.node.add()
    node.CopyFrom(case.proto.graph.node[0])
    node.output[0], node.name = "y2", "again"
    assert len(find_weights(Model(case.proto)).weights[0].uses) == 2
    changed(case, bits=4)
    for attribute in node.attribute:
        if attribute.name == "K":
            attribute.i = 63
    assert refusal(case) == ("packed", "its uses disagree about how its codes are packed")
    other = helper.make_node("MatMulInteger", ["b", "w"], ["y3"])
    case.proto.graph.node[1].CopyFrom(other)
    assert refusal(case)[0] == "packed"


def test_blocks_of_zero_scale_stand_for_zeros(tmp_path: Path) -> None:
    case = nbits(np.random.default_rng(5), 4, 40, 3, 16, "none")
    case.proto.graph.initializer[1].CopyFrom(tensor("s", np.zeros((3, 3), np.float32)))
    assert [r.code for r in plan(Model(case.proto)).refusals] == ["zeros"]
    scale = np.ones((3, 3), np.float32)
    scale[1] = 0
    case.proto.graph.initializer[1].CopyFrom(tensor("s", scale))
    case.dense = (case.codes.astype(np.float64) - 8) * np.repeat(scale, 16, 1)[:, :40]
    check(case, tmp_path, "tensor", 1.0, "raw")


def test_whoever_changes_what_fills_up_a_block_is_found_out(tmp_path: Path) -> None:
    for case, at in (
        (nbits(np.random.default_rng(6), 4, 40, 3, 16, "none"), 20),
        (bnb4(np.random.default_rng(6), 3, 3, 16, 0), 4),
    ):
        path, out = write(case.proto, tmp_path / "m.onnx"), tmp_path / "out.onnx"
        emp_onnx.prune(path, out)
        proto = onnx.load(out)
        raw = bytearray(proto.graph.initializer[0].raw_data)
        raw[at] ^= 1
        proto.graph.initializer[0].raw_data = bytes(raw)
        done = emp_onnx.verify(write(proto, tmp_path / "bad.onnx"), path)
        assert done.faults == ("what fills up the blocks of 'w' differs from the original",)


def test_experts_of_floats_are_weights() -> None:
    rng = np.random.default_rng(6)
    w1, w2 = rng.standard_normal((3, 8, 4)).astype(np.float32), rng.standard_normal((3, 4, 8)).astype(np.float32)
    node = helper.make_node("MoE", ["x", "p", "a", "", "b"], ["y"], "moe", domain=MS, k=1)
    proto = model([node], [value("x", [5, 4]), value("p", [5, 3])], [value("y", None)],
                  [tensor("a", w1), tensor("b", w2)], opset=17)  # fmt: skip
    source = Model(proto)
    masks = expected_masks(Case(proto, {"a": w1, "b": w2}, {"a": lambda i: i[:2], "b": lambda i: i[:2]}), scope="row")
    made = plan(source, scope="row")
    assert {e.name: e.kept_sha256 for e in made.entries} == {name: hash_mask(mask) for name, mask in masks.items()}
    feed = {"x": rng.standard_normal((5, 4)).astype(np.float32), "p": rng.standard_normal((5, 3)).astype(np.float32)}
    assert run(onnx.ModelProto.FromString(emp_onnx.apply(source, made).to_bytes()), feed).shape == (5, 4)


def experts(rng: np.random.Generator, bits: int, block: int, points: bool, prepacked: int | None = 0) -> Any:
    """Two experts of 32 inputs and 64 hidden units; the first projection is `w`."""
    e, hidden, inter = 2, 32, 64
    codes = rng.integers(0, 2**bits, (e, inter, hidden)).astype(np.uint8)
    second = rng.integers(0, 2**bits, (e, hidden, inter)).astype(np.uint8)
    count = hidden // block if block else 1
    scale = (rng.integers(1, 64, (e, inter, count)) / 64).astype(np.float32)
    scale2 = np.full((e, hidden, inter // block if block else 1), 0.25, np.float32)
    wide = -(-count * bits // 8) * 8 // bits
    point = rng.integers(0, 2**bits, (e, inter, count)) if points else np.full((e, inter, count), 2 ** (bits - 1))
    inits = [
        tensor("w", pack(codes, bits, hidden, rng).reshape(e, inter, -1)),
        tensor("s", scale if block else scale[..., 0]),
        tensor("v", pack(second, bits, inter, rng).reshape(e, hidden, -1)),
        tensor("t", scale2 if block else scale2[..., 0]),
    ]
    names = ["x", "p", "w", "s", "", "v", "t"]
    if points:
        raw = pack(point.astype(np.uint8), bits, wide, rng).reshape(e, inter, -1) if block else pack(
            point.reshape(e, inter).astype(np.uint8), bits, inter, rng).reshape(e, -1)  # fmt: skip
        inits.append(tensor("z", raw))
        names += ["", "", "", "", "z"]
    attributes = {
        "k": 1,
        "expert_weight_bits": bits,
        "activation_type": "relu",
        **({"block_size": block} if block else {}),
    }
    if prepacked is not None:
        attributes["weights_prepacked"] = prepacked
    node = helper.make_node("QMoE", names, ["y"], "moe", domain=MS, **attributes)
    inputs = [value("x", [5, hidden]), value("p", [5, e])]
    proto = model([node], inputs, [value("y", None)], inits, opset=17)
    groups = np.arange(hidden) // block if block else np.zeros(hidden, int)
    dense = (codes.astype(np.float64) - point[..., groups]) * scale.astype(np.float64)[..., groups]
    return proto, codes, dense, point[..., groups]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("points", [False, True])
def test_quantised_experts(bits: int, block: int, points: bool) -> None:
    rng = np.random.default_rng(7)
    proto, codes, dense, zero = experts(rng, bits, block, points)
    source = Model(proto)
    for scope in ("tensor", "row"):
        made = plan(source, scope=scope, include=["w"])
        masks = expected_masks(Case(proto, {"w": dense}, {"w": lambda i: i[:2]}), scope=scope)
        assert [e.kept_sha256 for e in made.entries] == [hash_mask(masks["w"])]
        new = onnx.ModelProto.FromString(emp_onnx.apply(source, made).to_bytes())
        raw = onnx.numpy_helper.to_array(new.graph.initializer[0])
        assert np.array_equal(unpack(raw, bits, codes.shape, 32)[0], np.where(masks["w"], codes, zero))


def test_experts_in_an_order_of_their_own_are_refused() -> None:
    for prepacked in (None, 1):
        proto = experts(np.random.default_rng(8), 4, 16, False, prepacked)[0]
        assert [r.code for r in find_weights(Model(proto)).refusals] == ["packed"] * 2


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("points", [False, True])
def test_packed_tables_are_pruned_when_asked(bits: int, points: bool) -> None:
    rng = np.random.default_rng(9)
    codes, scale = rng.integers(0, 2**bits, (6, 48)).astype(np.uint8), np.ones((6, 3), np.float32) / 2
    point = rng.integers(0, 2**bits, (6, 3)) if points else np.full((6, 3), 2 ** (bits - 1))
    wide = -(-3 * bits // 8) * 8 // bits
    inits = [tensor("w", pack(codes, bits, 48, rng).reshape(6, -1)), tensor("s", scale)]
    if points:
        inits.append(tensor("z", pack(point.astype(np.uint8), bits, wide, rng).reshape(6, -1)))
    node = helper.make_node("GatherBlockQuantized", ["w", "i", "s", *(["z"] if points else [])], ["y"], "g", domain=MS,
                            bits=bits, block_size=16, quantize_axis=1)  # fmt: skip
    proto = model([node], [value("i", [2], TensorProto.INT64)], [value("y", None)], inits, opset=17)
    assert [r.code for r in find_weights(Model(proto)).refusals] == ["embedding"]
    source = Model(proto)
    made = plan(source, scope="row", embeddings=True)
    zero = np.repeat(point, 16, 1)
    masks = expected_masks(Case(proto, {"w": (codes.astype(float) - zero) / 2}, {"w": lambda i: i[0]}), scope="row")
    assert [e.kept_sha256 for e in made.entries] == [hash_mask(masks["w"])]
    feed = {"i": np.array([1, 5])}
    dense = np.where(masks["w"], codes.astype(float) - zero, 0) / 2
    if bits == 4:
        new = onnx.ModelProto.FromString(emp_onnx.apply(source, made).to_bytes())
        assert np.array_equal(run(new, feed), dense[[1, 5]].astype(np.float32))


def test_blocks_of_a_dequantised_weight_that_do_not_divide_it() -> None:
    """40 elements in blocks of 16 have three scales; the third is for the last eight."""
    rng = np.random.default_rng(10)
    w, scale = rng.integers(-8, 8, (40, 3)).astype(np.int8), (rng.integers(1, 9, (3, 3)) / 8).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    proto = model(nodes, [value("x", [2, 40])], [value("y", None)], [tensor("w", w), tensor("s", scale)], opset=21,
                  ir=10)  # fmt: skip
    dense = w.astype(np.float64) * np.repeat(scale, 16, 0)[:40]
    masks = expected_masks(Case(proto, {"w": dense}, {"w": lambda i: i[1]}), scope="tensor")
    assert plan(Model(proto)).entries[0].kept_sha256 == hash_mask(masks["w"])


@settings(deadline=None)
@given(st.data())
def test_pieces_of_any_size(data: st.DataObject) -> None:
    """However small the pieces: reading gives the codes, and writing them piece by piece the bytes."""
    bits, width, rows = (
        data.draw(st.sampled_from([2, 4, 8])),
        data.draw(st.integers(1, 80)),
        data.draw(st.integers(1, 6)),
    )
    fill = 16 * data.draw(st.integers(0, 3))
    stride = width if not fill and width * bits % 8 == 0 else -(-width // 16) * 16 + fill
    high = data.draw(st.booleans())
    rng = np.random.default_rng(width)
    codes = rng.integers(0, 2**bits, (rows, width)).astype(np.uint8)
    raw = pack(codes, bits, stride, rng, high)
    case = Model(model([helper.make_node("Identity", ["w"], ["y"])], [], [value("y", None)], [tensor("w", raw)]))
    layout = CodeLayout(bits, "uint", (rows, width), rows, width, stride, high)
    with pytest.MonkeyPatch.context() as patch:
        size = 8 * data.draw(st.integers(1, 20))
        patch.setattr(coded, "PIECE", size)
        patch.setattr(coded, "pieces_of", lambda n, most=size: ((i, min(i + most, n)) for i in range(0, n, most)))
        case.read_codes("w", layout)
        where = case.stored("w")
        assert isinstance(where, Coded)
        i, j = sorted([data.draw(st.integers(0, codes.size)), data.draw(st.integers(0, codes.size))])
        assert where.read(i, j).tolist() == codes.reshape(-1)[i:j].tolist()
        new, out = rng.integers(0, 2**bits, codes.size).astype(np.uint8), dict[int, int]()

        def put(at: int, some: Any) -> None:
            for k, byte in enumerate(bytes(some)):
                assert at + k not in out
                out[at + k] = byte

        for start, stop in where.pieces():
            where.write(start, new[start:stop], put)
    after = np.array([out[at] for at in sorted(out)], np.uint8)
    assert unpack(after, bits, codes.shape, stride, high)[0].tolist() == new.reshape(codes.shape).tolist()
    assert unpack(after, bits, codes.shape, stride, high)[1] == unpack(raw, bits, codes.shape, stride, high)[1]
