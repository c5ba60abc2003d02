"""Fused attention: heads are independent, so whole heads go.

Queries, keys and values are (batch, length, heads·size); head h owns coordinates h·size … h·size + size − 1. With
fewer key heads than query heads (grouped queries), key head k serves `share` query heads in a row, and they go
together. Sizes of a head stay.
"""

from __future__ import annotations

import numpy as np

from emp_onnx.shrink.axes.links import Relation, Unfit, rule, whole
from emp_onnx.shrink.zeros import reaches

__all__ = ["fused", "grouped", "heads", "multi_head"]


def heads(relation: Relation, axis: str, tensor: str, place: int, count: int, *, parts: int = 1) -> None:
    """Tie an axis of `parts` times `count` heads in a row to the axis of heads."""
    size = relation.size(tensor, place)
    if size is None or size % (count * parts):
        raise Unfit("its heads do not divide the size")
    each = size // (count * parts)
    relation.tie((tensor, place, None), (axis, 0, np.arange(size) // each % count))


@rule("com.microsoft.Attention")
def fused(relation: Relation) -> None:
    """input · weights (C, 3·heads·size) + bias → attention; the columns are all queries, then all keys, then all
    values."""
    op = relation.op
    if op.attributes.get("qkv_hidden_sizes") or any(op.input(s) for s in (4, 5, 6)) or len(op.outputs) > 1:
        raise Unfit("it has a past, a bias of positions, or parts of unequal size")
    if not reaches(relation.view, op.inputs[1]):
        raise Unfit("its weights are computed")
    count = whole(op, "num_heads", 1)
    axis = relation.virtual("heads", count)
    heads(relation, axis, op.inputs[1], 1, count, parts=3)
    if op.input(2):
        heads(relation, axis, op.input(2), 0, count, parts=3)
    heads(relation, axis, op.outputs[0], 2, count)
    relation.tie((op.inputs[0], 2, None), (op.inputs[1], 0, None))
    relation.free(op.input(3))


@rule("com.microsoft.MultiHeadAttention")
def multi_head(relation: Relation) -> None:
    """query, key, value each (batch, length, heads·size)."""
    op = relation.op
    if (
        any(op.input(s) for s in (3, 5, 6, 7))
        or len(op.outputs) > 1
        or relation.rank(op.inputs[0]) != 3
        or not op.input(2)
    ):
        raise Unfit("it has packed inputs, a bias, or a past")
    count = whole(op, "num_heads", 1)
    axis = relation.virtual("heads", count)
    for name in (*op.inputs[:3], op.outputs[0]):
        heads(relation, axis, name, 2, count)
    relation.free(op.input(4))


@rule("com.microsoft.GroupQueryAttention", "Attention")
def grouped(relation: Relation) -> None:
    """query (batch, length, share·k·size), key and value (batch, length, k·size); past and present are (batch, k,
    length, size)."""
    op = relation.op
    ours = op.type == "Attention"
    queries = whole(op, "q_num_heads" if ours else "num_heads", 0)
    keys = whole(op, "kv_num_heads", 0)
    if ours and (op.input(3) or len([o for o in op.outputs[3:] if o])):
        raise Unfit("it has a mask of its own heads, or returns its scores")
    past = [n for n in ((*op.inputs[4:6], *op.outputs[1:3]) if ours else (*op.inputs[3:5], *op.outputs[1:3])) if n]
    if relation.rank(op.inputs[0]) == 4:  # (batch, heads, length, size)
        queries, keys = relation.size(op.inputs[0], 1) or 0, relation.size(op.inputs[1], 1) or 0
        place, four = 1, True
    else:
        place, four = 2, False
    if not queries or not keys or queries % keys or not op.input(1) or not op.input(2):
        raise Unfit("its numbers of heads are not given")
    axis = relation.virtual("heads", keys)
    for name, per in ((op.inputs[0], queries), (op.inputs[1], keys), (op.inputs[2], keys), (op.outputs[0], queries)):
        size = relation.size(name, place)
        if size is None or size % keys:
            raise Unfit("its heads do not divide the size")
        relation.tie((name, place, None), (axis, 0, np.arange(size) // (size // keys)))
        assert four or per
    for name in past:
        relation.tie((name, 1, None), (axis, 0, None))
    for name in op.inputs[3:]:
        if name not in past:
            relation.free(name)
