"""A model laid flat: what its bodies and functions do becomes steps beside the others, under fresh names.

- A branch of If becomes steps under a guard.
- A call of a local function becomes the function's steps; a weight of a function that is called twice is one constant
  under two names.
- A Loop or a Scan stays one step, since it is run as one, but the constants of its body move out of it, where they can
  be changed; and its body is laid flat too, as a program of its own, to be run step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from emp_onnx.calibration.laying import Frame, Laying
from emp_onnx.calibration.program import Program, Step, ordered
from emp_onnx.errors import MissingExtraError, ModelError
from emp_onnx.files.graph import Graph
from emp_onnx.files.model_io import Model

__all__ = ["flatten"]

Proto = Any


def flatten(model: Model, inline: Callable[[Graph], bool], whole: Container[int] = (), /) -> Program:
    """Lay a model flat; a body or a function is opened when `inline` holds for it (of an If, for one of its bodies).

    Args:
        model: the model.
        inline: which graphs to open.
        whole: loops that are not opened, by the ids of their bodies.

    Raises:
        ModelError: a node that onnx cannot read.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx") from error
    protos = []
    for at, end in model.contents.nodes:
        proto = onnx.NodeProto()
        try:
            proto.ParseFromString(model.source.read(at, end - at))
        except Exception as error:  # protobuf's own errors have no common base
            raise ModelError(f"model must hold nodes that onnx can read, got {model.origin}: {error}") from error
        protos.append(proto)
    head = _head(onnx, model)
    work = Laying(onnx, model, inline, whole, list(head.functions), list(head.opset_import))
    steps: list[Step] = []
    work.graph(model.graph, protos, Frame(steps), {})
    inputs = tuple(name for name in model.graph.inputs if name not in work.constants)
    program = Program(
        ordered(steps), work.constants, inputs, model.graph.outputs, work.functions, work.opsets, head.ir_version
    )
    _settle(program, program.steps)
    return program


def _head(onnx: Any, model: Model) -> Proto:
    """The model without its graph."""
    from emp_onnx.files.wire import Wire

    head, wire = onnx.ModelProto(), Wire(model.source)
    for number, _, _, tag, end in wire.fields(0, wire.size):
        if number in (1, 8, 25):
            head.MergeFromString(model.source.read(tag, end - tag))
    return head


def _settle(outer: Program, steps: Sequence[Step]) -> None:
    """Give the bodies of these steps, which `outer` has, the steps outside that make constants for them."""
    for step in steps:
        if step.body is not None:
            program = step.body.program
            mine, program.ir_version = program.steps, outer.ir_version
            made = {name for inner in mine for name in inner.outputs}
            read = {name for inner in mine for name in inner.reads} | set(program.outputs)
            fixed = [name for name in sorted(read - made) if name in outer.fixed and name not in outer.constants]
            program.steps = [*outer.closure(fixed), *mine]
            _settle(program, mine)
