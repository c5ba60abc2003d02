"""Operations that fold and unfold axes.

Reshape: in row-major order both shapes number the same elements, so both are products of common factors, outermost
first. Axis C = h·d that is unfolded into (h, d) has coordinate c = i·d + j; either whole i go, or the same j of every
i: two ways. The target shape is set anew.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from emp_onnx.shrink.axes.links import Relation, Unfit, rule

__all__ = ["constant_of_shape", "expand", "reshape", "segments", "shape"]

Parts = tuple[tuple[int, ...], tuple[int, ...]]


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(relation: Relation) -> None:
    """Tie each common factor to its place in the axes of both sides."""
    op = relation.op
    x, y = op.inputs[0], op.outputs[0]
    for name in op.inputs[1:]:
        relation.free(name)
    seen = [segments(run[x], run[y], relation.shape(x) or (), relation.shape(y) or ()) for run in relation.trace.runs]
    if any(s != seen[0] for s in seen):
        raise Unfit("it folds axes in another way when the input has another size")
    for name in (x, y):
        for axis in range(relation.rank(name)):
            if relation.size(name, axis) == 1:
                relation.free(name, axis)
    for number, (before, after) in enumerate(seen[0]):
        if len(before) == len(after) == 1:
            relation.tie((x, before[0], None), (y, after[0], None))
        else:
            _fold(relation, number, before, after)


def segments(
    one: tuple[int, ...], other: tuple[int, ...], first: tuple[int | None, ...], second: tuple[int | None, ...]
) -> list[Parts]:
    """The shortest runs of axes, from the left, that hold equally many elements on both sides; axes that are always 1
    are left out."""
    a = [i for i in range(len(one)) if first[i] != 1]
    b = [i for i in range(len(other)) if second[i] != 1]
    out: list[Parts] = []
    while a and b:
        left, right = [a.pop(0)], [b.pop(0)]
        m, n = one[left[0]], other[right[0]]
        while m != n:
            if (m < n and not a) or (n < m and not b):
                raise Unfit("the elements of both shapes do not match")
            if m < n:
                left.append(a.pop(0))
                m *= one[left[-1]]
            else:
                right.append(b.pop(0))
                n *= other[right[-1]]
        out.append((tuple(left), tuple(right)))
    if a or b:  # sizes that are 1 now and something else at another time
        before, after = out.pop() if out else ((), ())
        out.append(((*before, *a), (*after, *b)))
    return out


def _fold(relation: Relation, number: int, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    op = relation.op
    x, y = op.inputs[0], op.outputs[0]
    sizes = [[relation.size(name, axis) for axis in axes] for name, axes in ((x, before), (y, after))]
    if any(size is None for side in sizes for size in side):
        for name, axes in ((x, before), (y, after)):
            for axis in axes:
                relation.wall(name, axis, f"{op.label} folds it with an axis whose size changes with the input")
        return
    total = int(np.prod([size or 0 for size in sizes[0]]))
    # a cut stands before each axis, counted in elements from the right; a factor lies between two cuts
    cuts = sorted({total // int(c) for side in sizes for c in np.cumprod([1, *side])}, reverse=True)
    if any(big % small for big, small in pairwise(cuts)):
        raise Unfit("the axes of both shapes have no common factors")
    for name, axes, side in ((x, before, sizes[0]), (y, after, sizes[1])):
        stride = total
        for axis, size in zip(axes, side, strict=True):
            assert size is not None
            outer, stride = stride, stride // size
            inside = [(big, small) for big, small in pairwise(cuts) if big <= outer and small >= stride]
            for big, small in inside:
                factor = relation.virtual(f"{number}.{small}", big // small)
                place = np.arange(size) // (small // stride) % (big // small)
                relation.tie((name, axis, None), (factor, 0, place), way=(name, axis) if len(inside) > 1 else None)


@rule("Expand")
def expand(relation: Relation) -> None:
    """y = x broadcast to a shape, which is set anew; axes that grow from 1 are as large as that says."""
    op = relation.op
    x, y = op.inputs[0], op.outputs[0]
    shift = relation.rank(y) - relation.rank(x)
    relation.free(op.inputs[1])
    for axis in range(relation.rank(y)):
        inner = axis - shift
        if inner < 0 or (relation.size(x, inner) == 1 and relation.size(y, axis) != 1):
            relation.free(y, axis)
            if inner >= 0:
                relation.free(x, inner)
        else:
            relation.tie((x, inner, None), (y, axis, None))


@rule("ConstantOfShape")
def constant_of_shape(relation: Relation) -> None:
    """The same number everywhere, in a shape that is set anew."""
    relation.free(relation.op.inputs[0])
    relation.free(relation.op.outputs[0])


@rule("Shape", "Size")
def shape(relation: Relation) -> None:
    """Sizes: those that are the model's own are put in as constants where they were before."""
    relation.free(relation.op.inputs[0])
