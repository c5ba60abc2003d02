"""Damaged files: whatever is wrong with them, the answer is a model, or one sentence."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest

import emp_onnx
from emp_onnx.certificate import KEY
from emp_onnx.verify import alone
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
