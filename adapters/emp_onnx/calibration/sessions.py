"""Sessions of onnxruntime for some steps of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.program import Program, Step
from emp_onnx.errors import MissingExtraError, ModelError
from emp_onnx.files.graph import Node
from emp_onnx.runtime.ort import first_line

__all__ = ["open_operation", "open_session"]

Array = NDArray[Any]
OPSET, IR = 13, 8  # of single operations


def open_session(
    program: Program,
    steps: Sequence[Step],
    reads: Mapping[str, Array],
    gives: Sequence[str],
    read: Any,
    threads: int | None,
) -> Any:
    """A session for some steps, with the constants that they need."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime") from error
    made = {name for step in steps for name in step.outputs}
    fixed = [n for s in steps for n in s.inputs if n and n not in made and n in program.fixed]
    fixed += [n for n in gives if n not in made]
    before = program.closure(fixed)
    graph = onnx.GraphProto(name="part")
    graph.node.extend(step.proto for step in (*before, *steps))
    held = {n for s in (*before, *steps) for n in s.inputs if n} | set(fixed)
    for name in sorted(held & set(program.constants)):
        graph.initializer.append(_tensor(onnx, name, program.constants[name], read))
    for name, value in reads.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype) if value.dtype.kind != "O" else onnx.TensorProto.STRING
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in gives)
    model = onnx.ModelProto(ir_version=program.ir_version, graph=graph)
    model.opset_import.extend(program.opsets)
    model.functions.extend(program.functions)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = False  # what runs is small, and what an arena keeps is memory that work could use
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer) or any(
        value.dtype == np.float16 for value in reads.values()
    ):  # laying out attention in half precision crashes onnxruntime (1.32), and with it this process
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1

    def opened() -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    try:
        return opened()
    except Exception as error:
        if "ShapeInferenceError" in str(error):
            # sizes that follow from shapes (a Slice of a Shape) are worked out wrongly where numbers of axes are known
            # and sizes are not; where nothing is known they are left to the run. Some fusions would crash then (1.32)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            for item in model.graph.input:
                item.type.tensor_type.ClearField("shape")
            with suppress(Exception):
                return opened()
        raise ModelError(f"onnxruntime cannot load a part of the model: {first_line(error)}") from error


def open_operation(
    op: str, reads: Mapping[str, Array], gives: Sequence[str], attributes: Mapping[str, Any], threads: int | None
) -> Any:
    """A session for one operation of opset 13 that no model has."""
    import onnx

    said: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
    proto = onnx.helper.make_node(op, list(reads), list(gives), **said)
    step = Step(proto, Node(op, "", "", tuple(reads), tuple(gives), attributes, ()), tuple(reads), tuple(gives))
    program = Program([step], {}, (), (), [], [onnx.helper.make_opsetid("", OPSET)], IR)
    return open_session(program, [step], reads, gives, None, threads)


def _tensor(onnx: Any, name: str, tensor: Any, read: Any) -> Any:
    values = np.asarray(read(tensor.key))
    if tensor.dtype == "string":
        return onnx.helper.make_tensor(name, onnx.TensorProto.STRING, values.shape, values.reshape(-1).tolist())
    return onnx.numpy_helper.from_array(values, name)
