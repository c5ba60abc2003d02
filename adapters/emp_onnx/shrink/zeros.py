"""Whether a masked unit is zero in a tensor: what makes it right to leave its term out of a sum.

In the masked model every slice of every constant of the unit is zero. That makes a tensor zero there if it is such a
constant, if it is a linear image of one, or if it comes from a zero through something that keeps zeros. Where this
says no, a sum over the axis stays whole; a yes is no licence, for the proof looks at the numbers.
"""

from __future__ import annotations

from emp_onnx.shrink.view import View

__all__ = ["reaches"]

KEEPS = {
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Dropout", "Elu", "Erf", "Floor", "Gelu",
    "HardSwish", "Identity",
    "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish",
    "Tan", "Tanh",
    "ThresholdedRelu", "com.microsoft.FastGelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu", "PRelu",
    "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth",
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample", "ReduceSum", "ReduceMean",
    "ReduceMax",
    "ReduceMin", "ReduceL1", "ReduceL2", "Pad",
}  # fmt: skip
LINEAR = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
}


def reaches(view: View, name: str, depth: int = 64) -> bool:
    """Whether masked units are zero in this tensor."""
    if name in view.constants:
        return view.constants[name].dtype.kind in "fV"
    op = view.makers.get(name)
    if op is None or not depth:
        return False
    inputs = [i for i in op.inputs if i]
    if op.type in KEEPS or op.type in ("Div", "Pow", "Where"):
        return reaches(view, op.inputs[1 if op.type == "Where" else 0], depth - 1) and (
            op.type != "Where" or reaches(view, op.inputs[2], depth - 1)
        )
    if op.type in LINEAR:
        # the axis of the result comes from a weight, whose bias is masked with it, or from the other operand, side by
        # side
        return all(reaches(view, i, depth - 1) or k == 0 for k, i in enumerate(inputs)) and len(inputs) > 1
    if op.type in ("Add", "Sub", "Sum", "Concat", "Max", "Min", "Mean"):
        return all(reaches(view, i, depth - 1) for i in inputs)
    if op.type in ("Mul", "Einsum"):
        return any(reaches(view, i, depth - 1) for i in inputs)
    return False
