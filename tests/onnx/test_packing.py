"""Packing: every form of any tensor gives back every bit, to us, to a slow reader, and to onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx import Model, ModelError, UsageError, VerifyError, load, pack, prune, save, unpack, verify
from emp_onnx.files.functions import DOMAIN
from emp_onnx.files.gaps import GapDecoder, gap_codes, join, split
from emp_onnx.packing.counts import BLOCKS, GAPS, Counts, stored_mask
from emp_onnx.packing.fill import fill_parts
from emp_onnx.packing.forms import entropy_bound, forms, survey
from emp_onnx.packing.places import Chosen
from emp_onnx.packing.rewrite import rewritten
from emp_onnx.words import MAKE_CONSTANT
from tests.onnx.builders import matmul, two_layers, write, write_external
from tests.onnx.packing import DTYPES, arrays, awkward, decoded, holder, read_packed, write_one_sidecar

RNG = np.random.default_rng(0)


def session(path: Path | bytes, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    given = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def sparse_matmul(rng: np.random.Generator, size: int = 64, density: float = 0.5, opset: int = 17) -> onnx.ModelProto:
    weight = rng.standard_normal((size, size)).astype(np.float32)
    weight[rng.random((size, size)) >= density] = 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, ["n", size])], [helper.make_tensor_value_info("y", 1, ["n", size])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


# codes


@given(st.lists(st.booleans(), max_size=400), st.sampled_from(GAPS), st.data())
def test_codes_of_gaps_are_those_of_the_definition(mask: list[bool], bits: int, data: st.DataObject) -> None:
    escape, codes, gap = (1 << bits) - 1, list[int](), 0
    for stored in mask:
        if not stored:
            gap += 1
            continue
        codes += [escape] * (gap // escape) + [gap % escape]
        gap = 0
    cut = data.draw(st.integers(0, len(mask)))
    first, end = gap_codes(np.array(mask[:cut], bool), 0, -1, bits)
    second, _ = gap_codes(np.array(mask[cut:], bool), cut, end, bits)
    found = np.concatenate([first, second])
    assert found.tolist() == codes
    assert join(split(found, bits), bits)[: found.size].tolist() == codes
    decoder = GapDecoder(lambda start, stop: found[start:stop], found.size, bits)
    step = data.draw(st.sampled_from([4, 8, 64]))
    places = [p for some, _, _ in decoder.places(0, -1, len(mask), step) for p in some.tolist()]
    assert places == np.flatnonzero(mask).tolist()


@given(arrays(), st.integers(1, 8))
def test_counts_are_those_of_the_whole_however_it_is_cut(case: tuple[str, Any], cut: int) -> None:
    array = case[1].reshape(-1)
    mask = stored_mask(array, np.zeros((), array.dtype))
    counts, step = Counts(), 256 * cut
    for start in range(0, mask.size, step):
        counts.add(mask[start : start + step])
    assert (counts.size, counts.stored) == (mask.size, int(mask.sum()))
    for width in BLOCKS:
        blocks = np.concatenate([mask, np.zeros(-mask.size % width, bool)]).reshape(-1, width)
        assert counts.blocks[width] == int(blocks.any(axis=1).sum())
    if not counts.dense:
        for bits in GAPS:
            assert counts.codes[bits] == gap_codes(mask, 0, -1, bits)[0].size


# every form of every tensor


def in_every_form(model: Model, key: str) -> list[Chosen]:
    tensor = model.tensors[key]
    found = survey(model, tensor)
    opset = model.contents.imports[""][0]
    return [Chosen(tensor, form, found) for form in forms(tensor, found, "onnxruntime-web", opset=opset)]


@settings(max_examples=60)
@given(arrays(), st.booleans(), st.booleans(), st.sampled_from([7, 9, 17]))
def test_every_form_gives_back_every_bit(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, Any], external: bool, constant: bool, opset: int
) -> None:
    array = case[1]
    folder = tmp_path_factory.mktemp("m")
    proto = holder(
        {"w": array, "other": RNG.standard_normal((3, 5)).astype(np.float32)}, opset=opset, as_constants=constant
    )
    path = (write_one_sidecar if external and not constant else write)(proto, folder / "m.onnx")
    wanted = array.tobytes()
    model = load(path)
    for chosen in in_every_form(model, "w"):
        out = folder / "packed.onnx"
        save(rewritten(model, [chosen]), out)
        after = load(out)
        assert after.values("w").tobytes() == wanted, chosen.form
        assert after.values("other").tobytes() == model.values("other").tobytes()
        start = int(RNG.integers(0, array.size + 1))
        stop = int(RNG.integers(start, array.size + 1))
        assert after.piece("w", start, stop).tobytes() == array.reshape(-1)[start:stop].tobytes()
        if chosen.form.kind != "dense":
            assert read_packed(out)["w"] == wanted, chosen.form
            stored = sum(after.stored(key).dtype.itemsize * after.tensors[key].size
                         for key in (*after.tensors["w"].recipe.where, *after.tensors["w"].recipe.values))  # fmt: skip
            assert stored == chosen.form.bytes
        back = folder / "back.onnx"
        save(rewritten(after, [dense for dense in in_every_form(after, "w") if dense.form.kind == "dense"]), back)
        assert load(back).values("w").tobytes() == wanted
        assert not any(t.recipe for t in load(back).tensors.values())


@settings(max_examples=15)
@given(arrays(), st.sampled_from([7, 8, 9, 10, 11, 12, 13, 16, 18, 21]))
def test_onnxruntime_unpacks_and_folds_every_form(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, Any], opset: int
) -> None:
    dtype, array = case
    if dtype == "bfloat16":
        opset = max(opset, 13)
    folder = tmp_path_factory.mktemp("m")
    # Concat along a new axis, so that something is left that is not folded and every output is computed
    model = load(write(holder({"w": array}, opset=opset), folder / "m.onnx"))
    for chosen in in_every_form(model, "w"):
        out = folder / "packed.onnx"
        save(rewritten(model, [chosen]), out)
        onnx.checker.check_model(out, full_check=True)
        found = session(out, folder / "folded.onnx")
        left = {node.op_type for node in onnx.load(folder / "folded.onnx").graph.node}
        assert left <= {"Identity"}, chosen.form
        if dtype != "bfloat16":
            assert found.run(None, {})[0].tobytes() == array.tobytes(), chosen.form
        else:
            folded = onnx.load(folder / "folded.onnx").graph.initializer
            assert any(tensor.raw_data == array.tobytes() for tensor in folded)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_every_level_of_optimisation_computes_the_same(tmp_path: Path, level: str) -> None:
    proto = sparse_matmul(np.random.default_rng(3))
    pack(Model(proto), tmp_path / "p.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    x = RNG.standard_normal((2, 64)).astype(np.float32)
    run = [onnxruntime.InferenceSession(m, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
           for m in (proto.SerializeToString(), str(tmp_path / "p.onnx"))]  # fmt: skip
    assert run[0].tobytes() == run[1].tobytes()


# sizes


@pytest.mark.parametrize(
    ("density", "most"), [(0.64, 0.68), (0.5, 0.54), (0.4, 0.44), (0.2, 0.24), (0.1, 0.14), (0.05, 0.09)]
)
def test_sizes_are_near_the_entropy(tmp_path: Path, density: float, most: float) -> None:
    done = pack(Model(sparse_matmul(np.random.default_rng(1), 1024, density)), tmp_path / "p.onnx")
    row = done.rows[0]
    assert done.after / done.before <= most
    stored = round(row.density * 1024**2)
    assert row.after <= 1.03 * entropy_bound(1024**2, stored, 4)


def test_what_would_not_be_smaller_stays_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = write(matmul(rng, 40).model, tmp_path / "m.onnx")
    done = pack(path, tmp_path / "p.onnx")
    assert (tmp_path / "p.onnx").read_bytes() == path.read_bytes()
    assert {row.form for row in done.rows} <= {"dense"}


def test_a_function_that_costs_more_than_it_saves_is_not_used(tmp_path: Path) -> None:
    # 1.6 KB saved, at 10 KB for the function
    done = pack(Model(sparse_matmul(np.random.default_rng(1), 24, 0.3)), tmp_path / "p.onnx")
    assert done.after == done.before
    assert done.rows[0].form == "dense"


def test_blocks_are_found(tmp_path: Path) -> None:
    weight = awkward(np.random.default_rng(1), (256, 512), "float32", 0.5, 32)
    done = pack(Model(holder({"w": weight})), tmp_path / "p.onnx")
    assert done.rows[0].form == "mask of blocks of 32"


# models


def test_packed_files_are_models_like_any_other(tmp_path: Path) -> None:
    path = write(two_layers(np.random.default_rng(0), 80).model, tmp_path / "m.onnx")
    plain = prune(path, tmp_path / "pruned.onnx", gzip=False)
    both = prune(path, tmp_path / "both.onnx", pack="auto", gzip=False)
    after = pack(plain.out, tmp_path / "packed.onnx")
    assert after.after < 0.9 * after.before
    assert both.out.read_bytes() == after.out.read_bytes()
    assert verify(after.out).ok
    assert verify(after.out, path).ok
    assert verify(after.out, plain.out).ok is verify(plain.out, plain.out).ok
    assert {e.name for e in both.plan.entries} == {e.name for e in plain.plan.entries}
    # pruned again: the same as pruning the dense one again, and packed again
    again = prune(after.out, tmp_path / "again.onnx", beta=0.6, gzip=False)
    dense = prune(plain.out, tmp_path / "dense.onnx", beta=0.6, gzip=False)
    assert any(t.recipe for t in load(again.out).tensors.values())
    assert again.out.stat().st_size < dense.out.stat().st_size
    for entry in dense.plan.entries:
        assert load(again.out).values(entry.name).tobytes() == load(dense.out).values(entry.name).tobytes()
    assert verify(again.out, after.out).ok
    assert verify(again.out, plain.out).ok
    back = unpack(again.out, tmp_path / "back.onnx")
    assert not any(t.recipe for t in load(back.out).tensors.values())
    assert verify(back.out, plain.out).ok


def test_verify_still_sees_what_differs(tmp_path: Path) -> None:
    path = write(two_layers(np.random.default_rng(0), 80).model, tmp_path / "m.onnx")
    done = prune(path, tmp_path / "p.onnx", pack="auto", gzip=False)
    proto = onnx.load(done.out)
    values = next(t for t in proto.graph.initializer if t.name.endswith(".values"))
    changed = bytearray(values.raw_data)
    changed[9] ^= 1
    values.raw_data = bytes(changed)
    onnx.save(proto, tmp_path / "bad.onnx")
    assert not verify(tmp_path / "bad.onnx").ok
    proto = onnx.load(done.out)
    proto.graph.name = "another"
    onnx.save(proto, tmp_path / "bad.onnx")
    assert not verify(tmp_path / "bad.onnx", path).ok


def test_sidecars_stay_sidecars_and_only_hold_what_is_used(tmp_path: Path) -> None:
    path = write_external(two_layers(np.random.default_rng(0), 80).model, tmp_path / "m.onnx", one_file=True)
    plain = prune(path, tmp_path / "pruned.onnx", gzip=False)
    done = pack(plain.out, tmp_path / "packed.onnx")
    assert done.after < 0.9 * done.before
    assert len(done.sidecars) == 1
    assert done.sidecars[0].stat().st_size > 0.5 * done.after
    assert verify(done.out, path).ok
    again = prune(done.out, tmp_path / "again.onnx", beta=0.5, gzip=False)
    assert verify(again.out, done.out).ok
    assert again.after.plain < done.after
    back = unpack(done.out, tmp_path / "back.onnx")
    for name in load(plain.out).tensors:
        assert load(back.out).values(name).tobytes() == load(plain.out).values(name).tobytes()
    assert pack(plain.out, tmp_path / "packed.onnx").sidecars == done.sidecars
    assert sorted(p.name for p in tmp_path.glob("packed.onnx*")) == sorted(["packed.onnx", done.sidecars[0].name])


def test_weights_in_bodies_are_packed_there(tmp_path: Path) -> None:
    weight = awkward(np.random.default_rng(5), (64, 64), "float32", 0.2)
    weight[~np.isfinite(weight)] = 1
    inner = [numpy_helper.from_array(weight, "w")]
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [
        helper.make_tensor_value_info("t", 1, None)], inner)  # fmt: skip
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [
        helper.make_tensor_value_info("e", 1, None)])  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)], "g",
        [helper.make_tensor_value_info("c", 9, []), helper.make_tensor_value_info("x", 1, [2, 64])],
        [helper.make_tensor_value_info("y", 1, None)],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    done = pack(Model(proto), tmp_path / "p.onnx")
    assert done.after < done.before
    assert done.rows[0].form == "gaps of 4 bits"
    assert done.verification.behaviour is not None
    body = next(a.g for a in onnx.load(done.out).graph.node[-1].attribute if a.name == "then_branch")
    assert [node.domain for node in body.node] == [DOMAIN, ""]
    back = unpack(done.out, tmp_path / "u.onnx")
    assert next(iter(t for k, t in load(back.out).tensors.items() if k.endswith("/w"))).shape == (64, 64)


def test_inputs_and_outputs_of_the_graph_stay_dense(tmp_path: Path) -> None:
    proto = sparse_matmul(np.random.default_rng(1))
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [64, 64]))
    done = pack(Model(proto), tmp_path / "p.onnx")
    assert (done.rows[0].form, "input of the graph" in done.rows[0].why) == ("dense", True)
    assert MAKE_CONSTANT in done.notes
    onnx.save(proto, tmp_path / "free.onnx")
    advised = (
        MAKE_CONSTANT.split("python ")[1]
        .replace("IN", str(tmp_path / "free.onnx"))
        .replace("OUT", str(tmp_path / "f.onnx"))
    )
    subprocess.run([sys.executable, *advised.split()], check=True)
    fixed = pack(load(tmp_path / "f.onnx"), tmp_path / "p.onnx")
    assert (fixed.after < fixed.before, fixed.notes) == (True, ())
    proto.ir_version = 3  # where every initializer had to be listed so
    done = pack(Model(proto), tmp_path / "p.onnx")
    assert done.after < done.before
    assert [i.name for i in onnx.load(done.out).graph.input] == ["x"]
    assert onnx.load(done.out).ir_version == 8
    proto = sparse_matmul(np.random.default_rng(1))
    proto.graph.output.append(helper.make_tensor_value_info("w", 1, [64, 64]))
    assert pack(Model(proto), tmp_path / "p.onnx").rows[0].form == "dense"


def test_local_functions_stay_as_they_are(tmp_path: Path) -> None:
    proto = sparse_matmul(np.random.default_rng(1))
    weight = proto.graph.initializer[0]
    inner = [helper.make_node("Constant", [], ["k"], value=weight), helper.make_node("MatMul", ["a", "k"], ["b"])]
    proto.functions.append(helper.make_function("mine", "F", ["a"], ["b"], inner, [helper.make_opsetid("", 17)]))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.graph.node.append(helper.make_node("F", ["y"], ["z"], domain="mine"))
    proto.graph.output[0].name = "z"
    done = pack(Model(proto), tmp_path / "p.onnx")
    assert [row.form for row in done.rows] == ["mask", "dense"]
    assert "local function" in done.rows[1].why
    assert done.verification.behaviour is not None


def test_names_that_are_taken_are_left_alone(tmp_path: Path) -> None:
    proto = sparse_matmul(np.random.default_rng(1))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w.values"))
    done = pack(Model(proto), tmp_path / "p.onnx")
    onnx.checker.check_model(done.out, full_check=True)
    assert done.after < done.before


def test_packing_twice_changes_nothing(tmp_path: Path) -> None:
    path = write(sparse_matmul(np.random.default_rng(1)), tmp_path / "m.onnx")
    one = pack(path, tmp_path / "1.onnx")
    two = pack(one.out, tmp_path / "2.onnx")
    assert one.out.read_bytes() == two.out.read_bytes()


@pytest.mark.parametrize(("size", "narrow"), [(128, 16), (181, 16), (182, 32), (256, 32)])
def test_the_sparse_form(tmp_path: Path, size: int, narrow: int) -> None:
    path = write(sparse_matmul(np.random.default_rng(1), size, 0.05), tmp_path / "m.onnx")
    for compact, bits in ((False, 64), (True, narrow)):
        done = pack(path, tmp_path / "coo.onnx", form="coo", compact_indices=compact)
        assert done.rows[0].form == f"coo, int{bits}"
        assert done.verification.behaviour is not None
        assert bool(done.notes) is compact
        stored = onnx.load(done.out).graph.sparse_initializer[0]
        dense = np.zeros(size * size, np.float32)
        indices = np.frombuffer(stored.indices.raw_data, f"<i{bits // 8}")
        dense[indices] = np.frombuffer(stored.values.raw_data, np.float32)
        assert dense.tobytes() == load(path).values("w").tobytes()
    both = prune(path, tmp_path / "both.onnx", pack="coo", gzip=False)
    assert len(onnx.load(both.out).graph.sparse_initializer) == 1
    assert verify(both.out, path).ok
    with pytest.raises(UsageError, match="compact_indices must come without"):
        pack(path, tmp_path / "x.onnx", compact_indices=True, target="checker-strict")


def test_options_out_of_range() -> None:
    model = Model(sparse_matmul(np.random.default_rng(1)))
    for options, says in (({"form": "zip"}, "form must be one of"), ({"target": "abacus"}, "target must be one of"),
                        ({"include": ["nothing"]}, "include must match a tensor")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            pack(model, "x.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="out must be given"):
        pack(model)


def test_rounding_to_float16_is_lossy_and_says_so(tmp_path: Path) -> None:
    path = write(two_layers(np.random.default_rng(0), 80).model, tmp_path / "m.onnx")
    plain = prune(path, tmp_path / "pruned.onnx", gzip=False).out
    exact, done = pack(plain, tmp_path / "exact.onnx"), pack(plain, tmp_path / "half.onnx", values="float16")
    assert done.after < 0.75 * exact.after
    assert any("LOSSY" in note for note in done.notes)
    assert done.verification.behaviour is not None
    assert max(output.max_abs for output in done.verification.behaviour.outputs) > 0
    onnx.checker.check_model(done.out, full_check=True)
    model, before = load(done.out), load(plain)
    assert "effective_pruning.certificate" not in model.metadata
    halves = [key for key in model.tensors if key.endswith(".float16")]
    assert halves
    for key in halves:
        assert model.values(key).tobytes() == before.values(key.removesuffix(".float16")).astype(np.float16).tobytes()
    assert prune(done.out, tmp_path / "again.onnx", beta=0.7, gzip=False).verification.ok
    large = pack(Model(sparse_matmul(np.random.default_rng(1), 256)), tmp_path / "large.onnx", values="float16")
    assert large.rows[0].form == "mask"
    assert "ROUNDED" in large.rows[0].why
    assert large.after < 0.33 * large.before
    session(unpack(large.out, tmp_path / "u.onnx").out)


def test_feeds_decide_on_what_both_are_run(tmp_path: Path) -> None:
    path = write(sparse_matmul(np.random.default_rng(1)), tmp_path / "m.onnx")
    feed = {"x": np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)}
    np.savez(tmp_path / "feeds.npz", x=feed["x"][None])
    for feeds in ([feed], tmp_path / "feeds.npz"):
        done = pack(path, tmp_path / "p.onnx", values="float16", feeds=feeds)
        behaviour = done.verification.behaviour
        assert behaviour is not None
        assert (behaviour.random, behaviour.feeds) == (False, 1)
        one, two = (session(file).run(None, feed)[0] for file in (path, done.out))
        assert behaviour.outputs[0].max_abs == pytest.approx(float(np.abs(one.astype(float) - two).max()), rel=1e-6)
        assert behaviour.outputs[0].max_abs > 0
    assert unpack(done.out, tmp_path / "u.onnx", feeds=[feed]).verification.ok
    with pytest.raises(UsageError, match="feed 0"):
        pack(path, tmp_path / "q.onnx", feeds=[{"x": feed["x"][:, :5]}])
    assert not (tmp_path / "q.onnx").exists()


def test_values_beyond_float16_are_not_rounded(tmp_path: Path) -> None:
    weight = np.zeros((64, 64), np.float32)
    weight[::2] = 1e6
    done = pack(Model(holder({"w": weight})), tmp_path / "p.onnx", values="float16")
    assert not done.notes
    assert load(done.out).values("w").tobytes() == weight.tobytes()


# files that someone damaged


@pytest.fixture
def packed(tmp_path: Path) -> onnx.ModelProto:
    pack(Model(sparse_matmul(np.random.default_rng(1))), tmp_path / "p.onnx", form="packed")
    return onnx.load(tmp_path / "p.onnx")


def part(proto: onnx.ModelProto, end: str) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name.endswith(end))


@pytest.mark.parametrize(
    ("density", "end"),
    [
        (0.5, ".mask"),
        (0.5, ".values"),
        (0.15, ".codes"),
        (0.05, ".high"),
        (0.01, ".codes"),
        (0.51, ".starts"),
        (0.51, ".mask"),
    ],
)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 255))
def test_damaged_parts_are_refused_or_read(density: float, end: str, at: int, flip: int) -> None:
    proto = PACKED.setdefault(density, made(density))
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensor = part(copy, end)
    data = bytearray(tensor.raw_data)
    data[at % len(data)] ^= flip
    tensor.raw_data = bytes(data)
    model = Model(copy)
    if not readable(model):
        with pytest.raises(ModelError, match="damaged"):
            model.values("w")
        return
    found = model.values("w")
    node = next(n for n in copy.graph.node if n.op_type.startswith("Unpack"))
    assert found.tobytes() == decoded(node, {t.name: t for t in copy.graph.initializer})


def readable(model: Model) -> bool:
    try:
        model.values("w")
    except ModelError:
        return False
    return True


PACKED: dict[float, onnx.ModelProto] = {}


def made(density: float) -> onnx.ModelProto:
    opset = 9 if density == 0.51 else 17
    model = Model(sparse_matmul(np.random.default_rng(1), 128, density, opset))
    found = survey(model, model.tensors["w"])
    best = min(forms(model.tensors["w"], found, "onnxruntime-web", opset=opset), key=lambda form: form.bytes)
    return onnx.load_from_string(rewritten(model, [Chosen(model.tensors["w"], best, found)]).to_bytes())


def test_parts_that_do_not_fit_are_refused(packed: onnx.ModelProto) -> None:
    for end, dims in ((".values", [3]), (".mask", [511]), (".values", [2, 600])):
        copy = onnx.ModelProto()
        copy.CopyFrom(packed)
        tensor = part(copy, end)
        del tensor.dims[:]
        tensor.dims.extend(dims)
        tensor.raw_data = tensor.raw_data[: int(np.prod(dims)) * (4 if end == ".values" else 1)].ljust(
            int(np.prod(dims)) * (4 if end == ".values" else 1), b"\0"
        )
        with pytest.raises(ModelError, match="damaged"):
            Model(copy).values("w")
    copy = onnx.ModelProto()
    copy.CopyFrom(packed)
    shape = next(a for n in copy.graph.node for a in n.attribute if a.name == "shape")
    shape.t.raw_data = np.array([-64, 64], np.int64).tobytes()
    with pytest.raises(ModelError, match="sizes ≥ 0"):
        Model(copy).values("w")
    shape.t.raw_data = np.array([2**40, 2**40], np.int64).tobytes()
    with pytest.raises(ModelError, match="damaged"):
        Model(copy).values("w")


def test_a_result_that_is_not_the_same_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Model, key: str, form: Any, found: Any, at: Any, put: Any) -> None:
        fill_parts(model, key, form, found, at, put)
        put(at[-1] + 8, b"\1")

    monkeypatch.setattr("emp_onnx.packing.rewrite.fill_parts", wrong)
    with pytest.raises(VerifyError, match="other bits than before"):
        pack(Model(sparse_matmul(np.random.default_rng(1))), tmp_path / "p.onnx")
    assert not list(tmp_path.iterdir())


def test_the_report_is_plain_data(tmp_path: Path) -> None:
    done = pack(Model(sparse_matmul(np.random.default_rng(1))), tmp_path / "p.onnx")
    data = json.loads(json.dumps(done.to_dict()))
    assert data["bytes"]["after"] == done.out.stat().st_size
    assert data["tensors"][0]["form"] == "mask"


def test_all_types_are_tried() -> None:
    assert set(DTYPES) == set(__import__("emp_onnx.packing.forms", fromlist=["DTYPES"]).DTYPES)
