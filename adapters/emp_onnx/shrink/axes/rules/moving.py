"""Operations that move coordinates: each of the result is one of an operand."""

from __future__ import annotations

from typing import Any

import numpy as np

from emp_onnx.shrink.axes.links import Relation, Unfit, rule, whole

__all__ = ["concat", "depth_space", "gather", "slice_", "slices", "split", "tile", "transpose"]


@rule("Transpose")
def transpose(relation: Relation) -> None:
    """Axis a of the result is axis perm[a] of the operand."""
    op = relation.op
    rank = relation.rank(op.inputs[0])
    perm = list(op.attributes.get("perm", range(rank)[::-1]))
    for axis, old in enumerate(perm):
        relation.tie((op.inputs[0], int(old), None), (op.outputs[0], axis, None))


@rule("Concat")
def concat(relation: Relation) -> None:
    """Along `axis` operand k begins where operand k − 1 ends; all other axes go side by side."""
    op = relation.op
    y = op.outputs[0]
    axis = whole(op, "axis", 0) % relation.rank(y)
    start = 0
    sizes = [relation.size(name, axis) for name in op.inputs]
    for name, size in zip(op.inputs, sizes, strict=True):
        if size is None or relation.size(y, axis) is None:
            for n in (*op.inputs, y):
                relation.wall(n, axis, "its size changes with the input")
            break
        relation.tie((name, axis, None), (y, axis, np.arange(start, start + size)))
        start += size
    for a in range(relation.rank(y)):
        if a != axis:
            relation.tie((y, a, None), *((name, a, None) for name in dict.fromkeys(op.inputs)))


@rule("Split")
def split(relation: Relation) -> None:
    """The other way round; the sizes of the parts are set anew."""
    op = relation.op
    x = op.inputs[0]
    axis = whole(op, "axis", 0) % relation.rank(x)
    start, outs = 0, [o for o in op.outputs if o]
    if len(outs) < len(op.outputs):
        raise Unfit("one of its parts has no name")
    for name in outs:
        size = relation.size(name, axis)
        if size is None or relation.size(x, axis) is None:
            for n in (*outs, x):
                relation.wall(n, axis, "its size changes with the input")
            break
        relation.tie((name, axis, None), (x, axis, np.arange(start, start + size)))
        start += size
    for a in range(relation.rank(x)):
        if a != axis:
            relation.tie((x, a, None), *((name, a, None) for name in outs))
    relation.free(op.input(1))


def slices(relation: Relation) -> dict[int, tuple[int, int, int] | None]:
    """By axis: start, stop, step; None where they are computed from the input's values."""
    op, rank = relation.op, relation.rank(relation.op.inputs[0])
    if "starts" in op.attributes:
        starts: Any = op.attributes["starts"]
        ends, steps = op.attributes["ends"], [1] * len(starts)  # type: Any, Any
        axes: Any = op.attributes.get("axes", range(len(starts)))
    else:
        given = [relation.value(slot) if op.input(slot) else None for slot in (1, 2, 3, 4)]
        count = relation.size(op.input(1), 0)
        axes = given[2] if op.input(3) else range(count or 0)
        if count is None or axes is None:
            raise Unfit("its axes are computed")
        if any(op.input(slot) and relation.value(slot) is None for slot in (1, 2, 4)):
            return {int(a) % rank: None for a in axes}
        starts, ends = given[0], given[1]
        steps = given[3] if given[3] is not None else [1] * count
    return {int(a) % rank: (int(s), int(e), int(t)) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)}


@rule("Slice")
def slice_(relation: Relation) -> None:
    """Coordinate k of the result is start + k·step of the operand; what is not taken is free to go. Starts and stops
    are set anew."""
    op = relation.op
    x, y = op.inputs[0], op.outputs[0]
    taken = slices(relation)
    for axis in range(relation.rank(x)):
        if axis not in taken:
            relation.tie((x, axis, None), (y, axis, None))
            continue
        given, size = taken[axis], relation.size(x, axis)
        if given is None or size is None or relation.size(y, axis) is None:
            continue
        index = np.arange(size)[
            slice(given[0], max(given[1], -size - 1) if given[1] >= 0 or given[2] > 0 else given[1], given[2])
        ]
        if given[2] < 0 and given[1] < -size:
            index = np.arange(size)[given[0] :: given[2]]
        if len(index) != relation.size(y, axis):
            raise Unfit("it takes another number of coordinates than it says")
        if given[2] == 1 or len(index) == size:
            relation.tie((x, axis, index), (y, axis, None))
        else:
            for name in (x, y):
                relation.wall(name, axis, f"{op.label} takes every {given[2]}th")
    for name in op.inputs[1:]:
        relation.free(name)


@rule("Gather")
def gather(relation: Relation) -> None:
    """Along `axis`, constant indices: coordinate k of the result is indices[k]. Indices that are computed need the
    whole axis."""
    op = relation.op
    x, index, y = op.inputs[0], op.inputs[1], op.outputs[0]
    rank = relation.rank(x)
    axis = whole(op, "axis", 0) % rank
    inner = relation.rank(index)
    for a in range(rank):
        if a != axis:
            relation.tie((x, a, None), (y, a if a < axis else a + inner - 1, None))
    given, size = relation.value(1), relation.size(x, axis)
    relation.free(index)
    if given is None or size is None or inner > 1:
        for a in range(inner):
            relation.tie((index, a, None), (y, axis + a, None))
        relation.wall(
            x, axis, f"{op.label} picks from it by computed indices" if given is None else f"{op.label} picks from it"
        )
        return
    chosen = given.reshape(-1).astype(np.intp) % size
    if inner == 0:
        relation.free(x, axis)
        relation.wall(x, axis, f"{op.label} picks it", chosen)
    else:
        relation.tie((x, axis, chosen), (y, axis, None))


@rule("Tile")
def tile(relation: Relation) -> None:
    """Axes repeated once go side by side."""
    op, repeats = relation.op, relation.value(1)
    if repeats is None:
        raise Unfit("its repeats are computed")
    for axis, times in enumerate(np.asarray(repeats)):
        if times == 1:
            relation.tie((op.inputs[0], axis, None), (op.outputs[0], axis, None))
    relation.free(op.input(1))


@rule("DepthToSpace", "SpaceToDepth")
def depth_space(relation: Relation) -> None:
    """Channel c' in space is blocks² channels in depth: block·C' + c' (DCR, and SpaceToDepth), or c'·blocks² + block
    (CRD)."""
    op = relation.op
    deep, flat = (op.inputs[0], op.outputs[0]) if op.type == "DepthToSpace" else (op.outputs[0], op.inputs[0])
    many, few = relation.size(deep, 1), relation.size(flat, 1)
    if many is None or few is None:
        raise Unfit("its channels change with the input")
    crd = op.attributes.get("mode", b"DCR") == b"CRD"
    place = np.arange(many) // (many // few) if crd else np.arange(many) % few
    relation.tie((deep, 1, None), (flat, 1, place))
    relation.tie((deep, 0, None), (flat, 0, None))
