"""LSTM, GRU and RNN as linear maps: the pre-activations of their gates, over all steps of a sequence at once.

A cell's gates see `W·x_t + R·h_{t−1} + b`. Given what the cell said at every step, all these rows are known, so nothing
needs to be run step by step. One problem per direction holds both sides, [W R] on [x_t; h_{t−1}]. The candidate gate
of a GRU is one of its own, [W R] on [x_t; r_t ⊙ h_{t−1}] with the reset gate r_t that the network has; where the gate
comes after R (linear_before_reset) it stands between the sides, and they are two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.program import Step
from emp_onnx.calibration.unroll import positions

__all__ = ["HIDDEN", "recurrent"]

Array = NDArray[Any]
Index = NDArray[np.int64]
Get = Callable[[str], "Array | None"]
HIDDEN = "hidden states of "
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, eq=False)
class _Map:
    parts: list[tuple[str, Index]]
    rows: Callable[[Get, int, int], Array]
    bias: tuple[str, Index] | None


def recurrent(
    step: Step, w: tuple[str, Index], r: tuple[str, Index], b: list[tuple[str, Index]]
) -> tuple[list[_Map], str] | str:
    """The maps of a cell, and the name under which its hidden states are wanted (time, directions, batch, units).

    `w`, `r` and each of `b` are keys with indices in the shapes of the operation's inputs.
    """
    gates = GATES[step.node.op]
    if w[1].ndim != 3 or r[1].ndim != 3 or w[1].shape[1] != r[1].shape[1]:
        return "its shapes are not those of a recurrent cell"
    units = r[1].shape[2]
    split = step.node.op == "GRU"
    before = split and not step.node.number("linear_before_reset")
    given = [name.decode() for a in step.proto.attribute if a.name == "activations" for name in a.strings]
    if before and any(name.lower() != "sigmoid" for name in given[::2]):
        return "a GRU whose reset gate comes first and is no sigmoid is not refitted"
    hidden = HIDDEN + next(name for name in step.outputs if name)
    both, inner, outer = (True, True), (True, False), (False, True)
    last = slice(2 * units, 3 * units)
    maps = []
    for d in range(w[1].shape[0]):
        sides = [(slice(0, 2 * units if split else gates * units), both)]
        if split:
            sides += [(last, both)] if before else [(last, inner), (last, outer)]
        for some, on in sides:
            parts = [(side[0], side[1][d, some][None]) for side, use in zip((w, r), on, strict=True) if use]
            place = some if on[0] else slice(gates * units + some.start, gates * units + some.stop)
            bias = next(((key, at[d, place][None]) for key, at in b if (at[d, place] >= 0).all()), None)
            maps.append(_Map(parts, _rows(step, d, hidden, on, before and some is last), bias))
    return maps, hidden


def _rows(step: Step, d: int, hidden: str, on: tuple[bool, bool], reset: bool) -> Callable[[Get, int, int], Array]:
    batch_first = bool(step.node.number("layout"))
    way = step.node.attributes.get("direction", "forward")
    backward = way == "reverse" or (way == "bidirectional" and d == 1)

    def value(get: Get, slot: int) -> Array | None:
        return get(step.inputs[slot]) if slot < len(step.inputs) and step.inputs[slot] else None

    def rows(get: Get, seed: int, limit: int) -> Array:
        x, h = value(get, 0), get(hidden)
        assert x is not None
        assert h is not None
        if batch_first:  # (batch, time, …) and (batch, time, directions, units)
            x, h = x.swapaxes(0, 1), h.transpose(1, 2, 0, 3)
        h = h[:, d]
        time, batch = x.shape[:2]
        lengths, start = value(get, 4), value(get, 5)
        ends = np.full(batch, time) if lengths is None else lengths.astype(np.int64)
        first = np.zeros((batch, h.shape[2]), h.dtype)
        if start is not None:
            first = start[:, d] if batch_first else start[d]
        last = np.empty_like(h)
        if backward:
            last[:-1] = h[1:]
            for i, end in enumerate(ends):
                if end:
                    last[end - 1, i] = first[i]
        elif time:
            last[1:], last[0] = h[:-1], first
        use = np.arange(time)[:, None] < ends[None]
        if reset:
            last = last * _reset(step, d, value, get, x, last)
        out = np.concatenate([side[use] for side, taken in zip((x, last), on, strict=True) if taken], axis=1)
        some = positions(len(out), limit, seed)
        return (out if some is None else out[some])[None]

    return rows


def _reset(step: Step, d: int, value: Callable[[Get, int], Array | None], get: Get, x: Array, last: Array) -> Array:
    """The reset gate of a GRU at every step, by the weights that the network has."""
    w, r, b = (value(get, slot) for slot in (1, 2, 3))
    assert w is not None
    assert r is not None
    units = r.shape[2]
    mine = slice(units, 2 * units)
    before = x.astype(np.float64) @ w[d, mine].T + last.astype(np.float64) @ r[d, mine].T
    if b is not None:
        before += b[d, mine] + b[d, 4 * units : 5 * units]
    return np.asarray(1 / (1 + np.exp(-before)), np.float32)
