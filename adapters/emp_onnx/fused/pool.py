"""The MaxPool behind a convolution, which a node with a packed weight can do itself."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper

from emp_onnx.fused.graph import Uses, is_standard, value_of

__all__ = ["Pool", "pool_behind"]


@dataclass(frozen=True)
class Pool:
    """What follows a convolution.

    Attributes:
        steps: the MaxPool, and the Relu before or behind it if there is one; in their order.
        relu: whether there is: it makes no difference where.
        attributes: of the node that does it all.
    """

    steps: list[onnx.NodeProto]
    relu: bool
    attributes: list[onnx.AttributeProto]


def pool_behind(graph: Uses, name: str) -> Pool | None:
    """The pool that alone uses a value, or the Relu of it; None where there is none, or one that kernels cannot do.

    Args:
        graph: where it is.
        name: what a convolution makes.

    Example:
        >>> from onnx import helper
        >>> steps = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
        ...          helper.make_node("MaxPool", ["b"], ["y"], kernel_shape=[3, 3], strides=[2, 2])]
        >>> found = pool_behind(Uses(helper.make_graph(steps, "g", [], []), None), "a")
        >>> [step.op_type for step in found.steps], found.relu, [item.name for item in found.attributes]
        (['Relu', 'MaxPool'], True, ['pool_kernel', 'pool_strides', 'pool_pads'])
    """
    steps = list[onnx.NodeProto]()
    relu = False
    after = graph.only_user(name)
    if after is not None and is_standard(after, "Relu"):
        steps, relu = [after], True
        after = graph.only_user(after.output[0])
    if after is None or not is_standard(after, "MaxPool") or not (attributes := _attributes(after)):
        return None
    steps.append(after)
    last = graph.only_user(after.output[0])
    if not relu and last is not None and is_standard(last, "Relu"):
        steps, relu = [*steps, last], True
    return Pool(steps, relu, attributes)


def _attributes(pool: onnx.NodeProto) -> list[onnx.AttributeProto]:
    """Those of the node that does it; none where it is more than the greatest of each window of two axes."""
    kernel = value_of(pool, "kernel_shape", [])
    strides, pads = value_of(pool, "strides", [1] * len(kernel)), value_of(pool, "pads", [0] * (2 * len(kernel)))
    more = value_of(pool, "ceil_mode", 0) or max(value_of(pool, "dilations", [1])) > 1
    written = value_of(pool, "auto_pad", b"NOTSET") in (b"NOTSET", b"")
    inside = len(kernel) == 2 and all(pad < kernel[i % 2] for i, pad in enumerate(pads))
    if len(pool.output) > 1 or more or not written or not inside or max(*kernel, *strides) > 1024:
        return []
    given = {"pool_kernel": kernel, "pool_strides": strides, "pool_pads": pads}
    return [helper.make_attribute(name, list(values)) for name, values in given.items()]
