"""y[i, j, …] = f(a[i, j, …], b[i, j, …], …), with broadcasting: axes are aligned from the right.

Coordinate c of an axis of y depends on coordinate c of every operand that has that axis with more than one
coordinate; an operand of size 1 there serves all coordinates and loses none.
"""

from __future__ import annotations

from emp_onnx.shrink.axes.links import Relation, Unfit, rule

__all__ = ["BROADCAST", "UNARY", "align", "along_one", "elementwise", "first_only", "quantised"]

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos", "Cosh",
    "Elu", "Erf", "Exp",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Swish",
    "Tan", "Tanh", "ThresholdedRelu", "com.microsoft.FastGelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
    "com.microsoft.BiasGelu",
)  # fmt: skip
BROADCAST = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual",
    "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip


def align(relation: Relation, names: tuple[str, ...], out: str) -> None:
    """Tie the axes of operands to those of the result, from the right."""
    rank = relation.rank(out)
    operands = [name for name in dict.fromkeys(names) if name]
    for back in range(1, rank + 1):
        axis = rank - back
        size = relation.size(out, axis)
        ends = [(out, axis, None)]
        for name in operands:
            have = relation.rank(name)
            if have < back:
                continue
            if relation.size(name, have - back) == 1 and size != 1:
                relation.free(name, have - back)
            else:
                ends.append((name, have - back, None))
        relation.tie(*ends)


@rule(*UNARY, *BROADCAST, "CastLike")
def elementwise(relation: Relation) -> None:
    """All operands and the result."""
    op = relation.op
    if "axis" in op.attributes or op.attributes.get("broadcast"):
        ranks = {relation.rank(name) for name in op.inputs if name}
        if len(ranks) > 1:
            raise Unfit("it broadcasts along an axis, as in opset 6")
    align(relation, op.inputs[:1] if op.type == "CastLike" else op.inputs, op.outputs[0])
    if op.type == "CastLike":
        relation.free(op.input(1))


@rule("Clip", "Dropout")
def first_only(relation: Relation) -> None:
    """The other inputs are single numbers; Dropout's mask has the shape of its result."""
    op = relation.op
    for out in op.outputs:
        if out:
            align(relation, op.inputs[:1], out)
    for name in op.inputs[1:]:
        relation.free(name)


@rule("QuantizeLinear", "DequantizeLinear")
def quantised(relation: Relation) -> None:
    """y[…, c, …] = f(x[…, c, …], scale[c], zero[c]): c along `axis`, or one scale for all."""
    op = relation.op
    align(relation, op.inputs[:1], op.outputs[0])
    if relation.rank(op.input(1)) == 1 and relation.size(op.input(1), 0) != 1:
        axis = int(relation.attribute("axis", 1))
        relation.tie((op.outputs[0], axis, None), *((name, 0, None) for name in op.inputs[1:3]))
    elif relation.rank(op.input(1)) > 1:
        raise Unfit("its scales come in blocks")
    else:
        for name in op.inputs[1:3]:
            relation.free(name)


@rule("Softmax", "LogSoftmax", "Hardmax", "CumSum", "ArgMax", "ArgMin", "TopK")
def along_one(relation: Relation) -> None:
    """All coordinates of one axis take part in each result: that axis stays, all others go side by side.

    Softmax before opset 13 works along all axes from `axis` on.
    """
    op, name = relation.op, relation.op.inputs[0]
    rank = relation.rank(name)
    old = op.type in ("Softmax", "LogSoftmax", "Hardmax") and relation.view.opset < 13
    default = {"ArgMax": 0, "ArgMin": 0}.get(op.type, 1 if old else -1)
    if op.type == "CumSum":
        given = relation.value(1)
        if given is None:
            raise Unfit("its axis is computed")
        default = int(given.reshape(-1)[0])
    axis = int(relation.attribute("axis", default)) % rank
    walled = set(range(axis, rank)) if old else {axis}
    drops = op.type in ("ArgMax", "ArgMin") and not int(relation.attribute("keepdims", 1))
    for a in range(rank):
        if a in walled:
            continue
        for out in op.outputs:
            if out:
                relation.tie((name, a, None), (out, a - (drops and a > axis), None))
