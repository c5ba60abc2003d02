"""Loading and saving: nothing is lost, nothing half-written, nothing read from where it should not be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from emp_onnx import Model, ModelError, OutputError, UsageError, apply, load, plan, save
from emp_onnx.files.graph import Graph
from tests.onnx.builders import Case, cases, conv, model, read_weight, tensor, two_layers, value, write, write_external

RNG = np.random.default_rng(5)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@settings(max_examples=30)
@given(cases())
def test_values_are_what_onnx_reads(case: Case) -> None:
    loaded = Model(case.model)
    for name, array in case.weights.items():
        seen = loaded.values(name)
        assert seen.dtype == np.float32
        assert seen.tobytes() == array.tobytes()
        assert seen.shape == array.shape
        with pytest.raises(ValueError, match="read-only"):
            seen[...] = 0


@pytest.mark.parametrize("one_file", [True, False])
def test_external_values_are_mapped(tmp_path: Path, one_file: bool) -> None:
    case = two_layers(RNG)
    path = write_external(case.model, tmp_path / "m.onnx", one_file=one_file)
    loaded = load(path)
    assert len(loaded.sidecars()) == (1 if one_file else 2)
    for name, array in case.weights.items():
        assert loaded.values(name).tobytes() == array.tobytes()


def test_saving_what_was_loaded_keeps_every_byte(tmp_path: Path) -> None:
    case = two_layers(RNG)
    case.model.doc_string = "kept"
    case.model.metadata_props.add(key="author", value="someone")
    data = case.model.SerializeToString() + b"\xc2\x3e\x03abc"  # field 1000, which no version of onnx knows
    (tmp_path / "m.onnx").write_bytes(data)
    assert save(load(tmp_path / "m.onnx"), tmp_path / "out.onnx") == (tmp_path / "out.onnx",)
    assert (tmp_path / "out.onnx").read_bytes() == data
    assert files(tmp_path) == {"m.onnx", "out.onnx"}


@pytest.mark.parametrize("storage", ["raw", "typed"])
def test_replaced_changes_these_values_and_metadata_only(storage: str) -> None:
    case = conv(RNG, storage=storage)
    old = Model(case.model)
    new = old.replaced({"w": case.weights["w"] * 0}, {"key": "text"})
    assert not new.values("w").any()
    assert old.values("w").tobytes() == case.weights["w"].tobytes()
    assert new.metadata == {"key": "text"}
    assert old.metadata == {}
    assert old.rest(frozenset({"w"}), "key") == new.rest(frozenset({"w"}), "key")
    assert old.rest(frozenset(), "key") != new.rest(frozenset(), "key")
    assert new.replaced({"w": case.weights["w"]}, {"key": None}).to_bytes() == old.to_bytes()


def test_metadata_is_replaced_in_place_and_repeats_go() -> None:
    proto = conv(RNG).model
    for key, text in (("a", "1"), ("k", "2"), ("b", "3")):
        proto.metadata_props.add(key=key, value=text)
    assert list(Model(proto).replaced({}, {"k": "new"}).metadata.items()) == [("a", "1"), ("k", "new"), ("b", "3")]
    proto.metadata_props.add(key="k", value="again")
    assert Model(proto).replaced({}, {"k": "new"}).metadata == {"a": "1", "b": "3", "k": "new"}


def test_replaced_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="must stay float32 of shape"):
        Model(conv(RNG).model).replaced({"w": np.zeros((1, 1), np.float32)}, {})


@pytest.mark.parametrize("one_file", [True, False])
def test_a_saved_model_has_sidecars_of_its_own(tmp_path: Path, one_file: bool) -> None:
    case = two_layers(RNG)
    path = write_external(case.model, tmp_path / "m.onnx", one_file=one_file)
    before = {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    source = load(path)
    written = save(apply(source, plan(source)), tmp_path / "out.onnx")
    assert {file: (tmp_path / file).read_bytes() for file in before} == before
    assert files(tmp_path) == set(before) | {file.name for file in written}
    assert all(file.name.startswith("out.onnx.") for file in written[1:])
    again = load(tmp_path / "out.onnx")
    for name, array in case.weights.items():
        assert 0 < np.count_nonzero(again.values(name)) < array.size
        assert read_weight(tmp_path / "out.onnx", name).tobytes() == again.values(name).tobytes()


def test_replacing_a_result_removes_the_sidecars_it_had(tmp_path: Path) -> None:
    path = write_external(two_layers(RNG).model, tmp_path / "m.onnx")
    source = load(path)
    for sparsity in (0.2, 0.5, 0.8):
        save(apply(source, plan(source, sparsity=sparsity)), tmp_path / "out.onnx")
        assert len(files(tmp_path)) == 4
    onnx.load(tmp_path / "out.onnx")


def test_a_sidecar_of_the_input_is_no_place_for_the_output(tmp_path: Path) -> None:
    path = write_external(two_layers(RNG).model, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="must not be a file that the input needs"):
        save(load(path), tmp_path / "m.onnx.weights")


def test_a_check_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = write_external(two_layers(RNG).model, tmp_path / "m.onnx")
    before = files(tmp_path)

    def check(temporary: Path) -> None:
        assert load(temporary).values("a").size
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        save(load(path), tmp_path / "out.onnx", check=check)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "which is empty"),
        (b"hello, this is no model", "which is damaged or something else"),
        (b"\x08\x07", "which has none"),
        (conv(RNG).model.SerializeToString()[:-7], "which is damaged or something else"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        load(tmp_path / "m.onnx")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match="the directory"):
        load(tmp_path)
    with pytest.raises(ModelError, match="could not be read"):
        load("a\0b")


@pytest.mark.parametrize("storage", ["raw", "typed"])
def test_bytes_that_do_not_fit_the_shape_are_named(storage: str) -> None:
    proto = conv(RNG, storage=storage).model
    proto.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(ModelError, match=r"weight 'w' of shape \(1099511627776, .* must hold \d+ bytes, got \d+"):
        Model(proto).values("w")


def external(**entries: str) -> onnx.ModelProto:
    proto = two_layers(RNG).model
    head = proto.graph.initializer[0]
    head.ClearField("raw_data")
    head.data_location = 1
    for key, text in entries.items():
        head.external_data.add(key=key, value=text)
    return proto


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"location": "../secret.bin"}, "inside the model's directory"),
        ({"location": "/etc/passwd"}, "inside the model's directory"),
        ({"location": "a/../../secret.bin"}, "inside the model's directory"),
        ({"location": "link.bin"}, "inside the model's directory"),
        ({}, "inside the model's directory"),
        ({"location": "a\0b"}, "inside the model's directory"),
        ({"location": "none.bin"}, "not a file beside the model"),
        ({"location": "short.bin"}, "cannot hold"),
        ({"location": "long.bin", "offset": "-4"}, "cannot hold"),
        ({"location": "long.bin", "offset": "999999999999"}, "cannot hold"),
        ({"location": "long.bin", "length": "8"}, "cannot hold"),
        ({"location": "long.bin", "offset": "x"}, "whole numbers"),
    ],
)
def test_sidecars_outside_or_out_of_bounds_are_refused(tmp_path: Path, entries: dict[str, str], sentence: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (folder / "short.bin").write_bytes(bytes(8))
    (folder / "long.bin").write_bytes(bytes(10_000))
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    path = write(external(**entries), folder / "m.onnx")
    with pytest.raises(ModelError, match=sentence):
        load(path).values("a")


def test_bodies_functions_and_training_are_searched_for_sidecars(tmp_path: Path) -> None:
    far = tensor("c", np.ones(3, np.float32))
    far.ClearField("raw_data")
    far.data_location = 1
    far.external_data.add(key="location", value="far.bin")
    (tmp_path / "far.bin").write_bytes(np.ones(3, np.float32).tobytes())
    constant = onnx.helper.make_node("Constant", [], ["k"], value=far)
    body = onnx.helper.make_graph([constant], "body", [], [value("k", [3])])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    proto = model([node], [value("c", [], onnx.TensorProto.BOOL)], [value("y", None)])
    path = write(proto, tmp_path / "m.onnx")
    assert set(load(path).sidecars()) == {"far.bin"}
    (tmp_path / "elsewhere").mkdir()
    written = save(load(path), tmp_path / "elsewhere" / "out.onnx")
    assert len(written) == 2
    onnx.load(written[0])


def test_a_model_in_memory_has_no_sidecars() -> None:
    with pytest.raises(ModelError, match="load the model from its path"):
        Model(external(location="a.bin")).values("a")
    with pytest.raises(ModelError, match="must hold its weights itself"):
        Model(external(location="a.bin")).to_bytes()


def test_places_that_take_no_file(tmp_path: Path) -> None:
    made = Model(conv(RNG).model)
    with pytest.raises(OutputError, match="must be a file name, got the directory"):
        save(made, tmp_path)
    with pytest.raises(OutputError, match="in a directory that exists"):
        save(made, tmp_path / "no" / "m.onnx")
    with pytest.raises(OutputError, match="which is something else"):
        save(made, "/dev/null")


def test_the_tree_of_graphs() -> None:
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["b"])], "body", [], [value("b", None)])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    made = Model(model([node], [value("c", [], onnx.TensorProto.BOOL)], [value("y", None)]))
    inner = made.graph.nodes[0].bodies
    assert {g.where for g in inner} == {"body 'then_branch' of If ''", "body 'else_branch' of If ''"}
    assert all(isinstance(g, Graph) and g.parent is made.graph for g in inner)
    assert made.graph.nodes[0].label == "If making 'y'"
