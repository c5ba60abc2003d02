"""LSTM, GRU, RNN: one hidden unit is one row of every gate in W, R and B, one column of R, one place in every state.

W is (D, g·H, I), R is (D, g·H, H), B is (D, 2·g·H), P is (D, 3·H), states are (D, B, H), Y is (T, D, B, H). Row r of
W belongs to hidden unit r mod H; both directions lose the same units, since Y stacks them on an axis of its own.
"""

from __future__ import annotations

import numpy as np

from emp_onnx.shrink.axes.links import Relation, Unfit, rule, whole
from emp_onnx.shrink.zeros import reaches

__all__ = ["recurrent"]


@rule("LSTM", "GRU", "RNN")
def recurrent(relation: Relation) -> None:
    """Hidden units, and features of the input with the columns of W."""
    op = relation.op
    if whole(op, "layout", 0):
        raise Unfit("its layout has the batch first")
    x, w, r, b, lengths, h0, c0, p = (op.input(slot) for slot in range(8))
    if not (reaches(relation.view, w) and reaches(relation.view, r)):
        raise Unfit("its weights are computed")
    hidden = relation.size(r, 2)
    rows = relation.size(w, 1)
    if hidden is None or rows is None:
        raise Unfit("its hidden size changes with the input")
    unit = relation.virtual("hidden", hidden)
    place = np.arange(rows) % hidden
    relation.tie((w, 1, None), (unit, 0, place))
    relation.tie((r, 1, None), (unit, 0, place))
    relation.tie((r, 2, None), (unit, 0, None))
    if b:
        relation.tie((b, 1, None), (unit, 0, np.arange(2 * rows) % hidden))
    if p:
        relation.tie((p, 1, None), (unit, 0, np.arange(relation.size(p, 1) or 0) % hidden))
    for state in (h0, c0, *op.outputs[1:]):
        if state:
            relation.tie((state, 2, None), (unit, 0, None))
    if op.outputs[0]:
        relation.tie((op.outputs[0], 3, None), (unit, 0, None))
    relation.tie((x, 2, None), (w, 2, None))
    relation.free(lengths)
