"""Verification: what is right passes, and every kind of tampering is found."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

import emp_onnx
from emp_onnx import Model, ModelError, UsageError, apply, load, plan, read_certificate, save, verify
from emp_onnx.certificates.rule import KEY
from emp_onnx.figures import SCOPES
from emp_onnx.files.reader import DOMAIN
from tests.onnx.builders import Case, cases, model, tensor, two_layers, value, write, write_external

scopes = st.sampled_from(SCOPES)
RNG = np.random.default_rng(2)


def pair(scope: str = "tensor", **options: Any) -> tuple[Model, Model]:
    case = two_layers(np.random.default_rng(4), 8)
    source = Model(case.model)
    return apply(source, plan(source, scope=scope, **options)), source


@settings(max_examples=25)
@given(cases(), scopes, st.sampled_from([0.5, 1.0, 3.0]))
def test_what_was_pruned_here_passes(case: Case, scope: str, beta: float) -> None:
    source = Model(case.model)
    pruned = apply(source, plan(source, scope=scope, beta=beta))
    assert verify(pruned).ok
    done = verify(pruned, source)
    # magnitudes of 10^30 overflow in the model itself; then only the structure can be compared
    assert [c for c in done.checks if not c.ok and "runs where" not in c.what] == []
    assert done.behaviour or done.not_run


@pytest.mark.parametrize(
    "options", [{"order": 1.0}, {"order": 0.0}, {"order": np.inf}, {"sparsity": 0.6}, {"beta": 0.1}]
)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_rule_passes(scope: str, options: dict[str, float]) -> None:
    pruned, source = pair(scope, **options)
    done = verify(pruned, source)
    assert done.ok, done.faults
    assert done.behaviour is not None
    assert done.behaviour.random


@settings(max_examples=30)
@given(cases(), scopes, st.data())
def test_any_changed_bit_of_any_weight_is_found(case: Case, scope: str, data: st.DataObject) -> None:
    source = Model(case.model)
    made = plan(source, scope=scope)
    assume(made.entries)
    pruned = apply(source, made)
    name = data.draw(st.sampled_from([e.name for e in made.entries]))
    array = pruned.values(name).copy()
    bits = array.view(np.uint32).reshape(-1)
    bits[data.draw(st.integers(0, bits.size - 1))] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    changed = pruned.replaced({name: array}, {})
    assert not verify(changed).ok  # also where +0.0 became −0.0
    assert not verify(changed, source).ok


def forged(pruned: Model, change: Callable[[dict[str, Any]], None]) -> Model:
    """A certificate changed by someone who also computes its hash anew."""
    body = json.loads(pruned.metadata[KEY])
    del body["sha256"]
    change(body)
    text = json.dumps(body, separators=(",", ":"))
    body["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return pruned.replaced({}, {KEY: json.dumps(body, separators=(",", ":"))})


def setting(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = to(body[path[-1]]) if callable(to) else to

    return change


CHANGES = {
    "k": setting("weights", "a", "k", to=lambda k: k + 1),
    "zeros": setting("weights", "a", "zeros", to=lambda z: z - 1),
    "n": setting("weights", "a", "n", to=lambda n: n + 1),
    "n_eff": setting("weights", "a", "n_eff", to=lambda n: n * 1.01),
    "mass": setting("weights", "a", "mass", to=lambda m: m * 1.01),
    "mass_lower": setting("weights", "a", "mass_lower", to=lambda m: m * 1.01),
    "mass_upper": setting("weights", "a", "mass_upper", to=lambda m: m * 0.99),
    "l1": setting("weights", "a", "l1", to=lambda m: m * 1.01),
    "kept": setting("weights", "a", "kept", to="0" * 64),
    "shape": setting("weights", "a", "shape", to=[1, 2]),
    "beta": setting("rule", "beta", to=0.9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_certificate_is_found_even_with_its_hash_made_anew(change: str) -> None:
    pruned, source = pair()
    assert verify(forged(pruned, lambda body: None), source).ok
    done = verify(forged(pruned, CHANGES[change]))
    assert not done.ok
    assert done.faults


@pytest.mark.parametrize(
    "change",
    [
        setting("pool", "k", to=lambda k: k + 1),
        setting("pool", "n_eff", to=lambda n: n * 1.01),
        setting("pool", "mass", to=lambda m: m * 0.99),
        setting("pool", "mass_lower", to=lambda m: m * 0.9),
        setting("pool", to=None),
        setting("rule", "beta", to=0.9),
    ],
)
def test_a_changed_pool_is_found(change: Callable[[dict[str, Any]], None]) -> None:
    pruned, source = pair("model")
    assert verify(forged(pruned, lambda body: None), source).ok
    assert not verify(forged(pruned, change)).ok


@pytest.mark.parametrize(
    "change",
    [
        setting("weights", "a", "n_eff", to=lambda n: n * 1.01),
        setting("weights", "a", "mass_lower", to=lambda m: m * 0.9),
        setting("weights", "a", "pools", to=3),
        setting("rule", "beta", to=0.9),
    ],
)
def test_what_rows_cannot_show_alone_the_original_shows(change: Callable[[dict[str, Any]], None]) -> None:
    pruned, source = pair("row")
    assert not verify(forged(pruned, change), source).ok


@pytest.mark.parametrize(
    "change",
    [
        setting("weights", "a", "k", to="3"),
        setting("weights", "a", "n_eff", to=None),
        setting("weights", to=[]),
        setting("weights", "a", to={}),
        setting("rule", to=None),
        setting("rule", "scope", to="galaxy"),
        setting("version", to=1),
        setting("version", to=2),
        setting("pool", to=3),
        lambda body: body.pop("weights"),
    ],
)
def test_a_certificate_of_another_form_is_found(change: Callable[[dict[str, Any]], None]) -> None:
    done = verify(forged(pair()[0], change))
    assert not done.ok
    assert "certificate must be" in done.faults[0]


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"sha256": 1}', "null"])
def test_a_certificate_that_is_none_is_found(text: str) -> None:
    pruned, source = pair()
    assert "certificate must be" in verify(pruned.replaced({}, {KEY: text}), source).faults[0]


def test_an_edited_certificate_is_found_by_its_hash() -> None:
    pruned, _ = pair()
    text = pruned.metadata[KEY].replace('"scope":"tensor"', '"scope":"model"')
    assert "its own hash does not match" in verify(pruned.replaced({}, {KEY: text})).faults[0]


def test_a_model_without_a_certificate_fails() -> None:
    _, source = pair()
    assert "must carry a certificate" in verify(source).faults[0]
    assert "must carry a certificate" in verify(source, source).faults[0]


@pytest.mark.parametrize("place", ["node", "attribute", "other tensor", "metadata", "output", "order", "doc"])
def test_anything_else_that_differs_is_found_and_named(place: str) -> None:
    pruned, source = pair()
    proto = onnx.ModelProto.FromString(pruned.to_bytes())
    if place == "node":
        proto.graph.node[1].op_type = "Sigmoid"
    elif place == "attribute":
        proto.graph.node[0].attribute.add(name="alpha", f=0.5, type=1)
    elif place == "other tensor":
        proto.graph.initializer.append(tensor("more", np.ones(2, np.float32)))
    elif place == "metadata":
        proto.metadata_props.add(key="author", value="x")
    elif place == "output":
        proto.graph.output[0].doc_string = "x"
    elif place == "order":
        a, b = (onnx.TensorProto.FromString(t.SerializeToString()) for t in proto.graph.initializer)
        proto.graph.initializer[0].CopyFrom(b)
        proto.graph.initializer[1].CopyFrom(a)
    else:
        proto.doc_string = "x"
    assert verify(Model(proto)).ok
    done = verify(Model(proto), source)
    assert not done.ok
    assert any("differs from the original" in fault for fault in done.faults)


def test_a_missing_weight_is_found() -> None:
    pruned, source = pair()
    proto = onnx.ModelProto.FromString(pruned.to_bytes())
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "renamed"
    assert "not among the model's weights" in verify(Model(proto)).faults[0]
    other = onnx.ModelProto.FromString(source.to_bytes())
    other.graph.initializer[0].name = other.graph.node[0].input[1] = "renamed"
    assert "is no weight of the original" in " ".join(verify(pruned, Model(other)).faults)


def test_another_original_is_found() -> None:
    pruned, _ = pair()
    other = Model(two_layers(np.random.default_rng(99), 8).model)
    done = verify(pruned, other)
    assert "the original gives" in " ".join(done.faults)
    assert "bits differ" in " ".join(done.faults)
    smaller = Model(two_layers(np.random.default_rng(4), 5).model)
    assert "shape" in " ".join(verify(pruned, smaller).faults)


def test_sidecars_are_compared_by_their_contents(tmp_path: Path) -> None:
    path = write_external(two_layers(np.random.default_rng(4), 8).model, tmp_path / "m.onnx")
    source = load(path)
    save(apply(source, plan(source, include=["a"])), tmp_path / "out.onnx")
    assert verify(tmp_path / "out.onnx", path).ok
    sidecar = next(tmp_path.glob("out.onnx.*.data"))
    data = bytearray(sidecar.read_bytes())
    data[-1] ^= 1
    sidecar.write_bytes(data)
    done = verify(tmp_path / "out.onnx", path)
    assert not done.ok
    assert "'b' differs from the original" in " ".join(done.faults)


def test_a_model_that_onnxruntime_cannot_load_is_verified_by_structure() -> None:
    case = two_layers(np.random.default_rng(4))
    case.model.graph.node.append(onnx.helper.make_node("Unheard", ["y"], ["z"], domain="com.microsoft"))
    case.model.graph.output[0].name = "z"
    source = Model(case.model)
    done = verify(apply(source, plan(source)), source)
    assert done.ok
    assert done.behaviour is None
    assert "onnxruntime cannot load it" in done.not_run


def test_inputs_that_cannot_be_made_up_are_said() -> None:
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.helper.make_node("Identity", ["s"], ["t"])]
    string = onnx.TensorProto.STRING
    proto = model(
        nodes, [value("x", ["N", 4]), value("s", [1], string)], [value("y", None), value("t", None, string)],
        [tensor("w", RNG.standard_normal((4, 3)).astype(np.float32))],
    )  # fmt: skip
    source = Model(proto)
    done = verify(apply(source, plan(source)), source)
    assert done.ok
    assert "such values cannot be made up" in done.not_run


def test_new_infinities_are_a_fault() -> None:
    # 1 / (x·w) is finite only while no sum is zero
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["h"]), onnx.helper.make_node("Reciprocal", ["h"], ["y"])]
    w = np.array([[10, 1, 10], [10, 1, 10]], np.float32)
    source = Model(model(nodes, [value("x", [1, 2])], [value("y", None)], [tensor("w", w)]))
    done = verify(apply(source, plan(source)), source, feeds=[{"x": np.ones((1, 2), np.float32)}])
    assert "holds NaN or infinities where the original's does not" in " ".join(done.faults)


def test_feeds_without_an_original_are_refused() -> None:
    with pytest.raises(UsageError, match="feeds must come with the original"):
        verify(pair()[0], feeds=[])


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    path = write(two_layers(RNG).model, tmp_path / "m.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(ModelError):
        verify(tmp_path / "bad.onnx")
    save(pair()[0], path)
    with pytest.raises(ModelError):
        verify(path, tmp_path / "bad.onnx")


def test_the_checksum_in_the_certificate_is_that_of_the_bytes_written(tmp_path: Path) -> None:
    path = write(two_layers(np.random.default_rng(4), 8).model, tmp_path / "m.onnx")
    source = load(path)
    pruned = apply(source, plan(source))
    save(pruned, tmp_path / "out.onnx")
    for model_ in (pruned, load(tmp_path / "out.onnx")):
        for name, said in read_certificate(model_).weights.items():
            data = model_.values(name).tobytes()
            leaves = [zlib.crc32(data[at : at + 2**18]).to_bytes(4, "little") for at in range(0, len(data), 2**18)]
            assert said.kept == hashlib.sha256(b"".join(leaves)).hexdigest()


def test_values_changed_after_the_certificate_was_made_do_not_change_it() -> None:
    pruned, _ = pair()
    text = pruned.metadata[KEY]
    changed = pruned.replaced({"a": pruned.values("a") * 2}, {})
    assert changed.metadata[KEY] == text
    assert "other kept values" in " ".join(verify(changed).faults)


def test_packed_weights_must_be_unpacked_by_our_own_functions(tmp_path: Path) -> None:
    """Whoever changes a constant in there changes what onnxruntime computes; another order of fields does not."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    proto = model(nodes, [value("x", ["n", 64])], [value("y", ["n", 64])], [tensor("w", weight)])
    emp_onnx.prune(write(proto, tmp_path / "a.onnx"), tmp_path / "p.onnx", pack="packed")
    packed = onnx.load(tmp_path / "p.onnx")
    onnx.save(packed, tmp_path / "again.onnx")
    assert verify(tmp_path / "again.onnx").ok
    function = next(item for item in packed.functions if item.domain == DOMAIN)
    tables = [a.t for node in function.node for a in node.attribute if a.name == "value"]
    table = max(tables, key=lambda item: item.ByteSize())
    changed = onnx.numpy_helper.to_array(table).copy()
    changed.flat[changed.size // 2] += 1
    table.CopyFrom(onnx.numpy_helper.from_array(changed))
    onnx.save(packed, tmp_path / "t.onnx")
    told = verify(tmp_path / "t.onnx")
    assert not told.ok
    assert told.faults == (f"function '{function.name}' is not what emp pack writes",)
    assert not verify(tmp_path / "t.onnx", tmp_path / "a.onnx").ok
