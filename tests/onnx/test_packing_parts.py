"""Tensors packed in parts: the same bits as in one piece, whoever reads them; and files of version 1 still are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx import Model, ModelError, load, pack, save, unpack
from emp_onnx.files.functions import VERSION, cut_in, cuts
from emp_onnx.fused.parts import rejoin
from emp_onnx.packing import forms as forms_room
from emp_onnx.packing.forms import forms, parted, survey
from emp_onnx.packing.places import Chosen
from emp_onnx.packing.rewrite import rewritten
from tests.onnx.builders import write
from tests.onnx.packing import DTYPES, awkward, holder, read_packed, write_one_sidecar


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are cut like large ones."""
    monkeypatch.setattr(forms_room, "PARTED", {32: "UnpackParts4", 4096: "UnpackParts8"})


def in_parts(model: Model, name: str = "w") -> Chosen:
    tensor = model.tensors[name]
    found = survey(model, tensor)
    form = next(f for f in forms(tensor, found, "onnxruntime-web", opset=17) if f.kind.startswith("UnpackParts"))
    return Chosen(tensor, form, found)


def folded(path: Path, out: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(out)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 16))
def test_parts_are_whole_rows_and_alike(shape: list[int], parts: int) -> None:
    at, row = cuts(shape, parts), int(np.prod(shape[1:]))
    assert at == sorted(at)
    assert (at[0], at[-1], len(at)) == (0, int(np.prod(shape)), parts + 1)
    rows = np.diff(at) / row
    assert (rows == rows.astype(int)).all()
    assert rows.max() - rows.min() <= 1


SHAPES = [(4, 8), (9, 8), (4, 64), (32,), (64, 200), (17, 8, 3, 3), (4, 8, 4, 4), (16, 256), (1001, 8)]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from(sorted(DTYPES)), st.sampled_from([0.0, 0.1, 0.6, 1.0]),
       st.sampled_from([11, 12, 13, 17, 21]), st.integers(0, 2**32 - 1))  # fmt: skip
def test_every_bit_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: str, density: float, opset: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    array = awkward(rng, shape, dtype, density)
    folder, wanted = tmp_path_factory.mktemp("m"), array.tobytes()
    model = load(write(holder({"w": array}, opset=max(opset, 13) if dtype == "bfloat16" else opset), folder / "m.onnx"))
    chosen = in_parts(model)
    assert cut_in(chosen.form.kind) == (8 if array.size >= 4096 else 4)
    out = folder / "p.onnx"
    save(rewritten(model, [chosen]), out)
    onnx.checker.check_model(out, full_check=True)
    assert read_packed(out)["w"] == wanted
    after = load(out)
    recipe = after.tensors["w"].recipe
    assert recipe is not None
    stored = [after.stored(key) for key in (*recipe.where, *recipe.values)]
    assert tuple(s.tensor.size * s.dtype.itemsize for s in stored) == chosen.form.parts
    start = int(rng.integers(0, array.size + 1))
    stop = int(rng.integers(start, array.size + 1))
    assert after.values("w").tobytes() == wanted
    assert after.piece("w", start, stop).tobytes() == array.reshape(-1)[start:stop].tobytes()
    graph = folded(out, folder / "f.onnx").graph
    assert {node.op_type for node in graph.node} <= {"Identity"}
    assert any(tensor.raw_data == wanted for tensor in graph.initializer)


def test_rows_that_end_within_bytes_are_not_cut() -> None:
    for shape in ((9, 12), (3, 64), (33,), (5, 7)):
        model = Model(holder({"w": np.ones(shape, np.float32)}))
        assert parted(model.tensors["w"]) == "", shape


def packed() -> onnx.ModelProto:
    model = Model(holder({"w": awkward(np.random.default_rng(3), (16, 64), "float32", 0.5)}))
    return onnx.load_from_string(rewritten(model, [in_parts(model)]).to_bytes())


def part(proto: onnx.ModelProto, end: str) -> Any:
    return next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(end))


def test_damaged_parts_are_refused() -> None:
    Model(packed()).values("w")
    proto = packed()  # values that belong to another part: onnxruntime would read others than we do
    one, other = part(proto, ".values.1"), part(proto, ".values.2")
    one.raw_data, other.raw_data = one.raw_data[:-4], other.raw_data + b"\1\1\1\1"
    one.dims[0], other.dims[0] = one.dims[0] - 1, other.dims[0] + 1
    with pytest.raises(ModelError, match="damaged: a part of it stores"):
        Model(proto).values("w")
    proto = packed()
    part(proto, ".values.3").raw_data = b"\0\0\0\1" + part(proto, ".values.3").raw_data[4:]
    with pytest.raises(ModelError, match="damaged: its parts have different fills"):
        Model(proto).values("w")
    proto = packed()
    one, other = part(proto, ".mask.0"), part(proto, ".mask.1")
    one.raw_data, other.raw_data = one.raw_data + other.raw_data[:1], other.raw_data[1:]
    one.dims[0], other.dims[0] = one.dims[0] + 1, other.dims[0] - 1
    with pytest.raises(ModelError, match="damaged: a mask of it must have 32 bytes"):
        Model(proto).values("w")
    proto = packed()
    part(proto, ".mask.1").data_type = onnx.TensorProto.INT8
    with pytest.raises(ModelError, match="parts of one type"):
        Model(proto).values("w")


def test_files_of_version_1_are_read_and_packed_anew(tmp_path: Path) -> None:
    array = awkward(np.random.default_rng(3), (64, 256), "float32", 0.5)
    model = load(write(holder({"w": array}), tmp_path / "m.onnx"))
    found = survey(model, model.tensors["w"])
    old = next(f for f in forms(model.tensors["w"], found, "onnxruntime-web", cut=False) if f.kind == "UnpackMask4")
    save(rewritten(model, [Chosen(model.tensors["w"], old, found)]), tmp_path / "old.onnx")
    assert load(tmp_path / "old.onnx").values("w").tobytes() == array.tobytes()
    graph = folded(tmp_path / "old.onnx", tmp_path / "f.onnx").graph
    assert any(tensor.raw_data == array.tobytes() for tensor in graph.initializer)
    again = load(tmp_path / "old.onnx")
    save(rewritten(again, [in_parts(again)]), tmp_path / "new.onnx")
    proto = onnx.load(tmp_path / "new.onnx")
    assert {item.name for item in proto.functions} == {"UnpackParts8", "Stage"}
    assert next(item.version for item in proto.opset_import if item.domain) == VERSION == 2
    assert unpack(tmp_path / "new.onnx", tmp_path / "u.onnx").verification.ok
    assert load(tmp_path / "u.onnx").values("w").tobytes() == array.tobytes()


def test_sidecars_keep_values_in_one_place(tmp_path: Path) -> None:
    array = awkward(np.random.default_rng(3), (64, 256), "float32", 0.5)
    plain = write_one_sidecar(holder({"w": array}), tmp_path / "m.onnx")
    for source, out in ((plain, tmp_path / "p.onnx"), (tmp_path / "p.onnx", tmp_path / "again.onnx")):
        done = pack(source, out)
        kinds = {node.op_type for node in onnx.load(done.out).graph.node if node.op_type.startswith("Unpack")}
        assert kinds == {"UnpackMask4"}
        assert load(done.out).values("w").tobytes() == array.tobytes()


@pytest.mark.parametrize(("shape", "whole"), [((64, 256), "UnpackMask4"), ((65, 256), "UnpackMask")])
def test_parts_are_put_together_for_kernels(shape: tuple[int, int], whole: str) -> None:
    array = awkward(np.random.default_rng(4), shape, "float32", 0.5)
    model = Model(holder({"w": array, "v": array[::-1].copy()}))
    proto = onnx.load_from_string(rewritten(model, [in_parts(model), in_parts(model, "v")]).to_bytes())
    rejoin(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node if node.op_type.startswith("Unpack")] == [whole, whole]
    assert {item.name for item in proto.functions} == {whole, "Stage"}
    again = Model(proto)
    assert again.values("w").tobytes() == array.tobytes()
    assert again.values("v").tobytes() == array[::-1].tobytes()
    assert len(proto.graph.initializer) == 5  # two masks, two values, and the first stage
