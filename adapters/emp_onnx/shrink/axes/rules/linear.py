"""Sums over a shared axis: y[o] = Σ_c w[o, c]·x[c] + b[o].

The summed axis of both operands goes together: what is missing in one is not asked for in the other. That equals the
masked model as soon as one of the two is zero there, which holds for weights, and for computed operands where zeros
reach them (`zeros.reaches`). The axis of y goes with o of w and b.
"""

from __future__ import annotations

import numpy as np

from emp_onnx.shrink.axes.links import Relation, Unfit, rule, whole
from emp_onnx.shrink.axes.rules.elementwise import align
from emp_onnx.shrink.zeros import reaches

__all__ = ["contract", "conv", "conv_transpose", "einsum", "gemm", "matmul"]


def contract(relation: Relation, *ends: tuple[str, int]) -> None:
    """Tie axes that are summed over; if no operand would be zero there, they stay."""
    if any(reaches(relation.view, name) for name, _ in ends):
        relation.tie(*((name, axis, None) for name, axis in ends))
        return
    for name, axis in ends:
        relation.wall(name, axis, f"{relation.op.label} sums over it, and it would not be zero")


@rule("Conv", "com.microsoft.FusedConv")
def conv(relation: Relation) -> None:
    """y[n, o] = Σ_c w[o, c] ∗ x[n, c] + b[o]; with g groups, c and o of one group only.

    x has g·I channels, w is (g·P, I, …). Either whole groups go (axis G of g), or the same place in every group:
    place i of x in all groups with w's axis 1, place p of y in all groups.
    """
    op = relation.op
    x, w, b, y = op.inputs[0], op.inputs[1], op.input(2), op.outputs[0]
    if op.type != "Conv" and op.input(3):
        raise Unfit("it adds another tensor")
    groups = whole(op, "group", 1)
    if not (reaches(relation.view, w) or reaches(relation.view, x)):
        raise Unfit("it sums over channels that would not be zero, since its weight is computed")
    relation.tie((x, 0, None), (y, 0, None))
    if groups == 1:
        relation.tie((x, 1, None), (w, 1, None))
        relation.tie((w, 0, None), (b, 0, None), (y, 1, None))
        return
    channels, outs = relation.size(x, 1), relation.size(w, 0)
    if channels is None or outs is None:
        raise Unfit("its channels change with the input")
    inside, per = channels // groups, outs // groups
    g = relation.virtual("groups", groups)
    relation.tie((w, 0, None), (b, 0, None), (y, 1, None))
    relation.tie((x, 1, None), (g, 0, np.arange(channels) // inside), way=(x, 1) if inside > 1 else None)
    relation.tie((w, 0, None), (g, 0, np.arange(outs) // per), way=(w, 0) if per > 1 else None)
    if inside > 1:
        relation.tie((x, 1, None), (w, 1, np.arange(channels) % inside), way=(x, 1))
    else:
        relation.free(w, 1)
    if per > 1:
        p = relation.virtual("places", per)
        relation.tie((w, 0, None), (p, 0, np.arange(outs) % per), way=(w, 0))


@rule("ConvTranspose")
def conv_transpose(relation: Relation) -> None:
    """y[n, o] = Σ_c w[c, o] ∗ᵀ x[n, c] + b[o]; with g groups x has g·I channels, w is (g·I, P, …), y has g·P."""
    op = relation.op
    x, w, b, y = op.inputs[0], op.inputs[1], op.input(2), op.outputs[0]
    groups = whole(op, "group", 1)
    if not (reaches(relation.view, w) or reaches(relation.view, x)):
        raise Unfit("it sums over channels that would not be zero, since its weight is computed")
    relation.tie((x, 0, None), (y, 0, None))
    relation.tie((x, 1, None), (w, 0, None))
    relation.tie((b, 0, None), (y, 1, None))
    if groups == 1:
        relation.tie((w, 1, None), (y, 1, None))
        return
    channels, per = relation.size(w, 0), relation.size(w, 1)
    if channels is None or per is None:
        raise Unfit("its channels change with the input")
    inside = channels // groups
    g = relation.virtual("groups", groups)
    relation.tie((w, 0, None), (g, 0, np.arange(channels) // inside), way=(w, 0) if inside > 1 else None)
    relation.tie((y, 1, None), (g, 0, np.arange(groups * per) // per), way=(y, 1) if per > 1 else None)
    if inside > 1:
        i = relation.virtual("places", inside)
        relation.tie((w, 0, None), (i, 0, np.arange(channels) % inside), way=(w, 0))
    if per > 1:
        relation.tie((y, 1, None), (w, 1, np.arange(groups * per) % per), way=(y, 1))
    else:
        relation.free(w, 1)


@rule("Gemm")
def gemm(relation: Relation) -> None:
    """y[m, n] = α·Σ_k a[m, k]·b[k, n] + β·c[m, n], a and b transposed if so said, c broadcast."""
    op = relation.op
    a, b, c, y = op.inputs[0], op.inputs[1], op.input(2), op.outputs[0]
    ta, tb = whole(op, "transA", 0), whole(op, "transB", 0)
    contract(relation, (a, 0 if ta else 1), (b, 1 if tb else 0))
    relation.tie((a, 1 if ta else 0, None), (y, 0, None))
    relation.tie((b, 0 if tb else 1, None), (y, 1, None))
    if c:
        align(relation, (c,), y)


@rule("MatMul", "com.microsoft.FusedMatMul")
def matmul(relation: Relation) -> None:
    """y[…, m, n] = Σ_k a[…, m, k]·b[…, k, n]; axes before the last two broadcast; operands of one axis are vectors."""
    op = relation.op
    if any(op.attributes.get(k) for k in ("transA", "transB", "transBatchA", "transBatchB")):
        raise Unfit("it transposes")
    a, b, y = op.inputs[0], op.inputs[1], op.outputs[0]
    ra, rb, ry = relation.rank(a), relation.rank(b), relation.rank(y)
    contract(relation, (a, ra - 1), (b, max(rb - 2, 0)))
    if ra > 1:
        relation.tie((a, ra - 2, None), (y, ry - (1 if rb == 1 else 2), None))
    if rb > 1:
        relation.tie((b, rb - 1, None), (y, ry - 1, None))
    tail = (ra > 1) + (rb > 1)
    for back in range(1, ry - tail + 1):
        ends: list[tuple[str, int, None]] = [(y, ry - tail - back, None)]
        size = relation.size(y, ry - tail - back)
        for name, rank in ((a, ra), (b, rb)):
            if rank - 2 - back >= 0:
                if relation.size(name, rank - 2 - back) == 1 and size != 1:
                    relation.free(name, rank - 2 - back)
                else:
                    ends.append((name, rank - 2 - back, None))
        relation.tie(*ends)


@rule("Einsum")
def einsum(relation: Relation) -> None:
    """One letter, one axis: all axes with the same letter go together; letters missing in the result are summed."""
    op = relation.op
    equation = relation.attribute("equation", b"")
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    if "." in text:
        raise Unfit("it has an ellipsis")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if not arrow:
        joined = "".join(terms)
        right = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    if any(len(set(t)) != len(t) for t in (*terms, right)):
        raise Unfit("it takes a diagonal")
    places: dict[str, list[tuple[str, int]]] = {}
    for name, term in zip((*op.inputs, op.outputs[0]), (*terms, right), strict=True):
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((name, axis))
    for letter, where in places.items():
        big = [(n, a) for n, a in where if relation.size(n, a) != 1]
        for name, axis in where:
            relation.free(name, axis)
        if letter in right:
            relation.tie(*((n, a, None) for n, a in big))
        elif big:
            contract(relation, *big)
