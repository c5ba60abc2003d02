"""A graph said plainly computes what it did: constant sizes, norms folded into products, products joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from emp_onnx.cli import main
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.lengthen import LONG, lengthened
from emp_onnx.shrink import shrink
from emp_onnx.shrink.axes.sizes import Sizes
from emp_onnx.shrink.axes.trace import Runner, trace
from emp_onnx.shrink.plainer.plain import plain
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.proof import prove
from emp_onnx.shrink.together import together
from emp_onnx.shrink.view import View, prepared

WIDE, HEADS = 16, 2


def block(variant: int = 0) -> onnx.ModelProto:
    """Attention with a norm of its own, as exporters write it: every size worked out anew."""
    rng = np.random.default_rng(variant)
    constants = {name: (rng.standard_normal((WIDE, WIDE)) / 4).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    constants |= {f"b{i}": rng.standard_normal(WIDE).astype(np.float32) for i in "qkvo"}
    constants |= {f"n{i}": rng.uniform(0.5, 2, WIDE).astype(np.float32) for i in "abcd"}
    constants |= {"zero": np.array(0, np.int64), "one": np.array(1, np.int64), "at": np.array([0], np.int64),
                  "heads": np.array([HEADS], np.int64), "deep": np.array([WIDE // HEADS], np.int64),
                  "wide": np.array([WIDE], np.int64)}  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t0"], perm=[0, 2, 1]),
        node("BatchNormalization", ["t0", "na", "nb", "nc", "nd"], ["t1"]),
        node("Transpose", ["t1"], ["h"], perm=[0, 2, 1]),
        node("Shape", ["h"], ["s"]),
        node("Gather", ["s", "zero"], ["s0"]),
        node("Gather", ["s", "one"], ["s1"]),
        node("Unsqueeze", ["s0", "at"], ["u0"]),
        node("Unsqueeze", ["s1", "at"], ["u1"]),
        node("Concat", ["u0", "u1", "heads", "deep"], ["to"], axis=0),
        node("Concat", ["u0", "u1", "wide"], ["back"], axis=0),
    ]
    for i in "qkv":
        nodes += [
            node("MatMul", ["h", f"w{i}"], [f"p{i}"]),
            node("Add", [f"p{i}", f"b{i}"], [f"a{i}"]),
            node("Reshape", [f"a{i}", "to"], [f"r{i}"]),
            node("Transpose", [f"r{i}"], [i], perm=[0, 2, 3, 1] if i == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["score"]),
        node("Softmax", ["score"], ["share"]),
        node("MatMul", ["share", "v"], ["seen"]),
        node("Transpose", ["seen"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "back"], ["flat"]),
        node("MatMul", ["flat", "wo"], ["po"]),
        node("Add", ["po", "bo"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", "t", WIDE])],
        [helper.make_tensor_value_info("y", 1, ["n", "t", WIDE])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(count: int = 4, *shape: int) -> list[Feed]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(shape or (1, 5, WIDE)).astype(np.float32)} for _ in range(count)]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_sizes_that_a_reshape_passes_on_are_said_in_its_target() -> None:
    problem = Problem.of(block(), feeds())
    assert not {"Shape", "Gather", "Concat", "BatchNormalization"} & set(kinds(problem.view.model))
    assert kinds(problem.view.model).count("Transpose") == 4
    assert problem.fewer == 10
    for shape in ((1, 5, WIDE), (3, 2, WIDE), (2, 9, WIDE)):
        assert prove(block(), problem.view.model, feeds(2, *shape)).holds


def test_a_norm_that_something_else_reads_stays() -> None:
    model = block()
    model.graph.output.append(helper.make_tensor_value_info("h", 1, ["n", "t", WIDE]))
    problem = Problem.of(model, feeds())
    assert "BatchNormalization" in kinds(problem.view.model)
    assert prove(model, problem.view.model, feeds()).holds


def test_what_is_said_plainly_and_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import emp_onnx.shrink.problem as module

    def wrong(view: View, traced: object) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(view.model)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((WIDE, WIDE), np.float32), "wq"))
        return model

    monkeypatch.setattr(module, "REWRITES", (wrong,))
    problem = Problem.of(block(), feeds())
    assert problem.fewer == 0
    assert kinds(problem.view.model) == kinds(block())


def test_what_is_said_plainly_and_does_not_run_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import emp_onnx.shrink.problem as module

    def broken(view: View, traced: object) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(view.model)
        model.graph.node[-1].input[0] = "nothing makes this"
        return model

    monkeypatch.setattr(module, "REWRITES", (broken, plain))
    problem = Problem.of(block(), feeds())
    assert problem.fewer == 10
    assert prove(block(), problem.view.model, feeds()).holds


def test_symbols_are_equal_only_where_sizes_must_be() -> None:
    view = View.of(prepared(block()))
    sizes = Sizes(view, trace(view, feeds()))
    assert sizes.of("q") == (("x", 0), HEADS, ("x", 1), WIDE // HEADS)
    assert sizes.values["to"] == (1, (("x", 0), ("x", 1), HEADS, WIDE // HEADS))
    names = [helper.make_tensor_value_info(n, 1, [s, 4]) for n, s in (("a", "p"), ("b", "q"))]
    out = [helper.make_tensor_value_info("c", 1, ["r", 4])]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", names, out)
    view = View.of(prepared(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)))
    one = [{n: np.ones((3, 4), np.float32) for n in "ab"}]
    assert Sizes(view, trace(view, one)).of("c")[0] == ("c", 0)  # either may be one


def test_nothing_to_say_more_plainly() -> None:
    view = View.of(Problem.of(block(), feeds()).view.model)
    assert plain(view, trace(view, feeds())) is None


def test_products_of_one_tensor_become_one() -> None:
    dense = block()
    joined = together(dense)
    assert joined is not None
    assert kinds(joined).count("MatMul") == kinds(dense).count("MatMul") - 2
    assert kinds(joined).count("Split") == 1
    onnx.checker.check_model(joined, full_check=True)
    assert prove(dense, joined, feeds()).holds
    assert together(joined) is None


def test_short_sequences_are_joined_and_long_ones_left() -> None:
    runner = Runner(block())
    short: list[Feed] = [{"x": np.ones((1, n, WIDE), np.float32)} for n in (1, 2, 1, 2) * 8]
    made = lengthened(runner.inputs, runner, short, apart=4)
    assert made
    assert any(LONG <= m["x"].shape[1] < LONG + 2 for m in made)
    assert all(m["x"].shape[0] == 1 for m in made)
    assert not lengthened(runner.inputs, runner, feeds(), apart=4)  # all of one length: that is no sequence
    assert not lengthened(
        runner.inputs, runner, [*short, {"x": np.ones((1, LONG, WIDE), np.float32)}], apart=4
    )


def test_channels_of_a_concatenation_are_counted_by_where_they_are_made() -> None:
    rng = np.random.default_rng(0)
    constants = {"a": rng.standard_normal((6, 3, 1, 1)), "b": rng.standard_normal((10, 3, 3, 3)),
                 "c": rng.standard_normal((4, 16, 1, 1))}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("Conv", ["x", "b"], ["q"], pads=[1] * 4),
        helper.make_node("Concat", ["p", "q"], ["r"], axis=1),
        helper.make_node("Conv", ["r", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 3, 5, 5])],
        [helper.make_tensor_value_info("y", 1, [1, 4, 5, 5])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    problem = Problem.of(model, feeds(2, 1, 3, 5, 5))
    assert [(g.name, g.units) for g in problem.groups] == [("a, axis 0", 6), ("b, axis 0", 10)]
    masks = {**problem.groups[0].removed([0, 5])}
    assert masks["c", 1].tolist() == [True, *[False] * 4, True, *[False] * 10]


def test_shrink_then_prune_then_pack_each_verified(tmp_path: Path) -> None:
    given = {f"{i}.npz": feed for i, feed in enumerate(feeds(12))}
    (tmp_path / "feeds").mkdir()
    for name, feed in given.items():
        np.savez(tmp_path / "feeds" / name, **feed)
    onnx.save(block(), tmp_path / "in.onnx")
    at = {name: str(tmp_path / f"{name}.onnx") for name in ("in", "small", "sparse", "packed", "back")}
    every = ["--feeds", str(tmp_path / "feeds")]
    assert main(["shrink", at["in"], at["small"], "--refit", "--target-size", "0.8x", *every]) == 0
    assert main(["prune", at["small"], at["sparse"], *every]) == 0
    assert main(["verify", at["sparse"], at["small"], *every]) == 0
    assert main(["pack", at["sparse"], at["packed"]]) == 0
    assert main(["unpack", at["packed"], at["back"]]) == 0
    assert prove(onnx.load(at["sparse"]), onnx.load(at["packed"]), feeds()).holds
    assert sum(n.size for n in map(numpy_helper.to_array, onnx.load(at["small"]).graph.initializer)) < 0.85 * sum(
        n.size for n in map(numpy_helper.to_array, block().graph.initializer)
    )


def test_random_feeds_are_told_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(block(), tmp_path / "in.onnx")
    assert main(["shrink", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--refit"]) == 0
    said = capsys.readouterr().out
    assert "NO FEEDS WERE GIVEN" in said
    assert "REFITTED TO RANDOM FEEDS" in said
    report = shrink(tmp_path / "in.onnx", tmp_path / "out2.onnx", feeds=feeds())
    assert not report.random


@pytest.mark.parametrize("limit", [0.02, 0.1, 0.3])
def test_the_model_that_is_written_keeps_the_budget(limit: float, tmp_path: Path) -> None:
    onnx.save(block(), tmp_path / "in.onnx")
    given = feeds(20)
    report = shrink(tmp_path / "in.onnx", tmp_path / "out.onnx", feeds=given, refit=True, max_error=limit)
    dense, small = Runner(block()), Runner(onnx.load(report.out))
    pairs = [(dense(feed)["y"], small(feed)["y"]) for feed in given[16:]]  # a fifth is kept back
    error = sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a - a.mean()).sum() for a, _ in pairs)
    assert error**0.5 <= limit
    assert report.error == pytest.approx(error**0.5, rel=1e-3, abs=1e-6)
