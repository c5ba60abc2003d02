"""Damaged files: whatever is wrong with them, the answer is a model, or one sentence."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import emp_onnx
from emp_onnx.certificates.rule import KEY
from emp_onnx.verification.alone import alone
from tests.onnx.builders import BUILDERS, model, tensor, two_layers, value, write_external

RNG = np.random.default_rng(0)


def seeds(folder: Path) -> list[bytes]:
    found = [build(RNG).model.SerializeToString() for _, build, _ in BUILDERS]
    found.append(write_external(two_layers(RNG).model, folder / "external.onnx").read_bytes())
    inner = onnx.helper.make_node("MatMul", ["x", "w"], ["q"])
    body = onnx.helper.make_graph([inner], "b", [], [value("q", None)], [tensor("w", np.ones((4, 2), np.float32))])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    inputs = [value("x", ["N", 4]), value("c", [], onnx.TensorProto.BOOL)]
    return [*found, model([node], inputs, [value("y", None)]).SerializeToString()]


def mutant(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(out))
        match rng.randrange(4):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2 if len(out) > 10:
                del out[at : at + rng.randrange(1, 9)]
            case _:
                out[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(out)


@pytest.mark.parametrize("seed", range(4))
def test_mutants_are_pruned_or_refused(tmp_path: Path, seed: int) -> None:
    rng, parents, done, sentences = random.Random(seed), seeds(tmp_path), 0, list[str]()
    for _ in range(150):
        path = tmp_path / "m.onnx"
        path.write_bytes(mutant(rng.choice(parents), rng))
        try:
            source = emp_onnx.load(path)
            pruned = emp_onnx.apply(source, emp_onnx.plan(source, scope=rng.choice(["tensor", "row", "model"])))
            emp_onnx.save(pruned, tmp_path / "out.onnx")
        except emp_onnx.OnnxError as error:
            sentences.append(str(error))
            continue
        done += 1
        assert all(check.ok for check in alone(emp_onnx.load(tmp_path / "out.onnx"))[0])
        assert source.rest(frozenset(), KEY)
    assert done
    assert not any("\n" in sentence for sentence in sentences)


def test_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    data = two_layers(RNG).model.SerializeToString().replace(b"second", b"sec\xff\xfed")
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(emp_onnx.ModelError, match="in UTF-8"):
        emp_onnx.load(tmp_path / "m.onnx")


def test_a_signalling_nan_is_named_like_any_other() -> None:
    case = two_layers(RNG)
    bits = case.weights["a"].view(np.uint32).copy()
    bits[0, 0] = 0x7F800001
    case.model.graph.initializer[0].raw_data = bits.tobytes()
    with pytest.raises(emp_onnx.ModelError, match="weight 'a' must hold finite numbers, got 1"):
        emp_onnx.plan(emp_onnx.Model(case.model))


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    # each level: a graph field holding a node holding an attribute holding a graph
    data = b""
    for _ in range(3000):
        attribute = b"\x32" + _length(data) + data
        node = b"\x2a" + _length(attribute) + attribute
        data = b"\x0a" + _length(node) + node
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x3a" + _length(data) + data)
    with pytest.raises(emp_onnx.ModelError, match="damaged or something else"):
        emp_onnx.load(tmp_path / "m.onnx")


def _length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return onnx.helper.make_function("local", name, ["a", "b"], ["c"], nodes, [onnx.helper.make_opsetid("", 13)])


def chain(length: int, op: str = "Identity") -> onnx.ModelProto:
    """A weight behind so many operations, the last of which is a MatMul."""
    make = onnx.helper.make_node
    nodes = [make(op, [f"w{i}" if i else "w"], [f"w{i + 1}"]) for i in range(length)]
    nodes.append(make("MatMul", ["x", f"w{length}"], ["y"]))
    return model(nodes, [value("x", ["N", 4])], [value("y", None)], [tensor("w", RNG.standard_normal((4, 4)))])


def doubling(levels: int) -> onnx.ModelProto:
    """Functions that each call the next one twice."""
    make = onnx.helper.make_node
    functions = [function(f"f{levels}", make("MatMul", ["a", "b"], ["c"]))]
    for i in range(levels):
        calls = [make(f"f{i + 1}", ["a", "b"], [out], domain="local") for out in ("p", "q")]
        functions.append(function(f"f{i}", *calls, make("Add", ["p", "q"], ["c"])))
    call = make("f0", ["x", "w"], ["y"], domain="local")
    w = tensor("w", RNG.standard_normal((4, 4)).astype(np.float32))
    return model([call], [value("x", ["N", 4])], [value("y", None)], [w], functions=functions)


def circle() -> onnx.ModelProto:
    """Nodes that feed each other, and one that feeds itself."""
    make = onnx.helper.make_node
    nodes = [
        make("Identity", ["w"], ["p"]), make("Identity", ["q"], ["p"]), make("Transpose", ["p"], ["q"]),
        make("Transpose", ["p"], ["p"]), make("MatMul", ["x", "q"], ["y"]),
    ]  # fmt: skip
    w = tensor("w", RNG.standard_normal((4, 4)).astype(np.float32))
    return model(nodes, [value("x", ["N", 4])], [value("y", None)], [w])


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: chain(20), ""),
        (lambda: chain(20_000), "more operations on its way than the 64"),
        (lambda: doubling(5), ""),
        (lambda: doubling(40), "use at most 20000 of them"),
        (circle, ""),
    ],
    ids=["short chain", "long chain", "32 calls", "2**40 calls", "circle"],
)
def test_graphs_made_to_be_followed_for_ever(made: Callable[[], onnx.ModelProto], sentence: str) -> None:
    start = time.monotonic()
    source = emp_onnx.Model(made())
    try:
        found = emp_onnx.find_weights(source)
        said = found.refusals[0].reason if found.refusals else ""
    except emp_onnx.ModelError as error:
        said = str(error)
    assert sentence in said
    assert time.monotonic() - start < 10


def test_a_scale_laid_over_a_shape_that_is_not_there_takes_no_memory() -> None:
    make = onnx.helper.make_node
    q = tensor("q", np.ones((2, 4), np.int8))
    del q.dims[:]
    q.dims.extend([2**31, 4])
    nodes = [make("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1), make("MatMul", ["x", "d"], ["y"])]
    inits = [q, tensor("s", np.arange(1, 5, dtype=np.float32)), tensor("z", np.arange(4, dtype=np.int8))]
    source = emp_onnx.Model(model(nodes, [value("x", None)], [value("y", None)], inits))
    with pytest.raises(emp_onnx.ModelError, match="'q'"):
        emp_onnx.plan(source)
