"""One small network told in many ways: as a Loop, as a Scan, as functions, and unrolled by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.onnx.builders import model, tensor, value

WAYS = ("loop", "scan", "function", "nested function", "loop calling", "loop in a loop", "if in a loop")
Array = NDArray[Any]


@dataclass
class Net:
    """h ← tanh(relu([x_t, h]·A + a)·B + b), from h = 0, over the rows of x; the answer is h·C.

    Attributes:
        inputs, units, middle, steps: sizes.
        home: where weights of a body are: `initializer` or `constant` in it, or `outer`.
        turned: whether A passes a Transpose on its way.
        biased: whether a and b are there.
    """

    inputs: int = 3
    units: int = 6
    middle: int = 8
    steps: int = 4
    home: str = "initializer"
    turned: bool = False
    biased: bool = True
    seed: int = 0

    def weights(self) -> dict[str, Array]:
        rng = np.random.default_rng(self.seed)

        def normal(*shape: int) -> Array:
            return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

        a = normal(self.inputs + self.units, self.middle)
        found = {"A": a.T.copy() if self.turned else a, "B": normal(self.middle, self.units)}
        found["C"] = normal(self.units, 3)
        return found | ({"a": normal(self.middle) / 2, "b": normal(self.units) / 2} if self.biased else {})

    def feeds(self, count: int, seed: int = 1) -> list[dict[str, Array]]:
        """Rows of which each hangs on others, so that some weights can stand in for others."""
        rng = np.random.default_rng(seed)
        mix = np.random.default_rng(self.seed + 9).standard_normal((self.inputs, self.inputs))
        return [{"x": (rng.standard_normal((self.steps, self.inputs)) @ mix).astype(np.float32)} for _ in range(count)]

    def step(self, x: str, h: str, out: str, at: str = "") -> list[Any]:
        """One step, its values named after `at`, on weights A, B, a, b."""
        node = helper.make_node
        a = f"At{at}" if self.turned else "A"
        nodes = [node("Transpose", ["A"], [a], perm=[1, 0])] if self.turned else []
        nodes += [node("Concat", [x, h], [f"xh{at}"], axis=1), node("MatMul", [f"xh{at}", a], [f"m{at}"])]
        m, z = f"m{at}", f"z{at}"
        if self.biased:
            nodes.append(node("Add", [m, "a"], [f"ma{at}"]))
            m = f"ma{at}"
        nodes += [node("Relu", [m], [f"r{at}"]), node("MatMul", [f"r{at}", "B"], [z], name=f"second{at}")]
        if self.biased:
            nodes.append(node("Add", [z, "b"], [f"zb{at}"]))
            z = f"zb{at}"
        return [*nodes, node("Tanh", [z], [out])]

    def told(self, way: str) -> onnx.ModelProto:
        """The network told in one of `WAYS`, or `unrolled`."""
        return getattr(self, "_" + way.replace(" ", "_"))()  # type: ignore[no-any-return]

    def body_tensors(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Initializers of a body, Constant nodes of it, and initializers around it."""
        some = [tensor(n, v) for n, v in self.weights().items() if n != "C"]
        last = [tensor("C", self.weights()["C"])]
        if self.home == "initializer":
            return some, [], last
        if self.home == "constant":
            return [], [helper.make_node("Constant", [], [t.name], value=t) for t in some], last
        return [], [], [*some, *last]

    def _whole(self, nodes: Sequence[Any], tensors: Sequence[Any], functions: Sequence[Any] = ()) -> onnx.ModelProto:
        start = tensor("h0", np.zeros((1, self.units), np.float32))
        nodes = [*nodes, helper.make_node("MatMul", ["h", "C"], ["y"])]
        return model(
            nodes, [value("x", [self.steps, self.inputs])], [value("y", None)], [start, *tensors], functions=functions
        )

    def _unrolled(self) -> onnx.ModelProto:
        nodes = []
        for t in range(self.steps):
            nodes.append(helper.make_node("Slice", ["x", f"f{t}", f"f{t + 1}", "zero"], [f"x{t}"]))
            nodes += self.step(f"x{t}", f"h{t}", f"h{t + 1}", f"_{t}")
        nodes.append(helper.make_node("Identity", [f"h{self.steps}"], ["h"]))
        ints = [tensor(f"f{t}", np.array([t])) for t in range(self.steps + 1)] + [tensor("zero", np.array([0]))]
        return self._whole(nodes, [*ints, *(tensor(n, v) for n, v in self.weights().items())])

    def _loop_node(self, inner: Sequence[Any], inside: Sequence[Any]) -> Any:
        body = helper.make_graph(
            [
                helper.make_node("Gather", ["x", "t"], ["row"], axis=0),
                helper.make_node("Unsqueeze", ["row", "zero"], ["xt"]),
                *inner,
                helper.make_node("Identity", ["go"], ["on"]),
            ],
            "body",
            [value("t", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h", [1, self.units])],
            [value("on", [], TensorProto.BOOL), value("hn", [1, self.units])], list(inside),
        )  # fmt: skip
        return helper.make_node("Loop", ["count", "", "h0"], ["h"], body=body)

    def _counts(self) -> list[Any]:
        return [tensor("count", np.array(self.steps)), tensor("zero", np.array([0]))]

    def _loop(self) -> onnx.ModelProto:
        inside, constants, outside = self.body_tensors()
        made = self._loop_node([*constants, *self.step("xt", "h", "hn")], inside)
        return self._whole([made], [*outside, *self._counts()])

    def _scan(self) -> onnx.ModelProto:
        inside, constants, outside = self.body_tensors()
        body = helper.make_graph(
            [*constants, helper.make_node("Unsqueeze", ["row", "zero"], ["xt"]), *self.step("xt", "h", "hn")], "body",
            [value("h", [1, self.units]), value("row", [self.inputs])], [value("hn", [1, self.units])], inside,
        )  # fmt: skip
        made = helper.make_node("Scan", ["h0", "x"], ["h"], body=body, num_scan_inputs=1)
        return self._whole([made], [*outside, *self._counts()])

    def _if_in_a_loop(self) -> onnx.ModelProto:
        """The step lies in a branch that is always taken."""
        inside, constants, outside = self.body_tensors()
        step = [helper.make_node("Identity", ["h"], ["hi"]), *self.step("xt", "hi", "new")]
        then = helper.make_graph([*constants, *step], "then", [], [value("new", None)], inside)
        other = helper.make_graph([helper.make_node("Identity", ["h"], ["old"])], "else", [], [value("old", None)])
        choice = [helper.make_node("Less", ["t", "count"], ["c"])]
        choice.append(helper.make_node("If", ["c"], ["hn"], then_branch=then, else_branch=other))
        return self._whole([self._loop_node(choice, [])], [*outside, *self._counts()])

    def _loop_in_a_loop(self) -> onnx.ModelProto:
        """The inner loop runs once."""
        inside, constants, outside = self.body_tensors()
        body = helper.make_graph(
            [*constants, *self.step("xt", "hi", "hin"), helper.make_node("Identity", ["goi"], ["oni"])], "inner",
            [value("ti", [], TensorProto.INT64), value("goi", [], TensorProto.BOOL), value("hi", [1, self.units])],
            [value("oni", [], TensorProto.BOOL), value("hin", [1, self.units])], inside,
        )  # fmt: skip
        inner = helper.make_node("Loop", ["once", "", "h"], ["hn"], body=body)
        return self._whole([self._loop_node([inner], [])], [*outside, *self._counts(), tensor("once", np.array(1))])

    def _functions(self) -> tuple[list[Any], list[Any], list[str]]:
        """A function for a step with what it calls, tensors around it, and the names of these as arguments."""
        _, constants, outside = self.body_tensors()
        if self.home == "initializer":  # functions have none
            constants = [helper.make_node("Constant", [], [t.name], value=t) for t in self.body_tensors()[0]]
        more = [name for name in self.weights() if name != "C"] if self.home == "outer" else []
        made = helper.make_function(
            "local", "Step", ["xt", "h", *more], ["hn"], [*constants, *self.step("xt", "h", "hn")],
            [helper.make_opsetid("", 13)],
        )  # fmt: skip
        return [made], outside, more

    def _function(self, wrap: bool = False) -> onnx.ModelProto:
        functions, outside, more = self._functions()
        called = "Step"
        if wrap:
            both = ["xt", "h", *more]
            call = helper.make_node("Step", both, ["hn"], domain="local")
            imports = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
            functions.append(helper.make_function("local", "Outer", both, ["hn"], [call], imports))
            called = "Outer"
        nodes = []
        for t in range(self.steps):
            nodes.append(helper.make_node("Slice", ["x", f"f{t}", f"f{t + 1}", "zero"], [f"x{t}"]))
            nodes.append(helper.make_node(called, [f"x{t}", f"h{t}", *more], [f"h{t + 1}"], domain="local"))
        nodes.append(helper.make_node("Identity", [f"h{self.steps}"], ["h"]))
        ints = [tensor(f"f{t}", np.array([t])) for t in range(self.steps + 1)] + [tensor("zero", np.array([0]))]
        return self._whole(nodes, [*ints, *outside], functions)

    def _nested_function(self) -> onnx.ModelProto:
        return self._function(True)

    def _loop_calling(self) -> onnx.ModelProto:
        functions, outside, more = self._functions()
        call = helper.make_node("Step", ["xt", "h", *more], ["hn"], domain="local")
        return self._whole([self._loop_node([call], [])], [*outside, *self._counts()], functions)
