"""Attention turned so that its places can be told apart: what a head says goes into few places, and the rest can go.

Nothing stands between the queries and keys of a head but a product, q·kᵀ, so q·T and k·T⁻ᵀ say the same for every
invertible T. With G = E[qᵀq] and G' = E[kᵀk] let √G·√G' = U·S·Vᵀ; then T = G^(−½)·U·√S and T⁻ᵀ = G'^(−½)·V·√S make q
and k equally large, and place j
of the product is S_j: the first r places are its best approximation of rank r. Between values and the weight W that
reads a head stands only a mean over tokens, so v·T and T⁻¹·W say the same: with √G·W = U·S·Vᵀ, T = G^(−½)·U·S.

Places are numbered through all heads, the largest first, so that the same place can go from every head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.regions import Group
from emp_onnx.shrink.axes.trace import Runner, Trace
from emp_onnx.shrink.fitting.moments import segment
from emp_onnx.shrink.view import Op, View

__all__ = ["rotate"]

Wide = NDArray[np.float64]
PASSING = {"MatMul", "Einsum", "Add", "Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Div", "Mul"}
FLOOR = 1e-5  # of the largest eigenvalue: what is smaller is not told from nothing


def rotate(view: View, traced: Trace, groups: Sequence[Group], feeds: Sequence[Feed], threads: int = 1) -> int:
    """Turn, in place, what can be turned; how many groups were."""
    done = 0
    for group in groups:
        makers, readers = _sides(view, group)
        if makers is None or not _plain(view, traced, group):
            continue
        if len(makers) == 2 and not readers:
            done += _pair(view, group, makers, feeds, threads)
        elif len(makers) == 1 and len(readers) == 1:
            done += _chain(view, group, makers[0], readers[0], feeds, threads)
    return done


def _sides(view: View, group: Group) -> tuple[list[Op] | None, list[Op]]:
    """The products that make the group's places and those that read them; None if there is any other constant in it."""
    makers: list[Op] = []
    readers: list[Op] = []
    for (name, axis), labels in group.axes.items():
        values = view.constants.get(name)
        if values is None or not (labels >= 0).any():
            continue
        users = view.readers.get(name, [])
        if len(users) != 1 or (labels < 0).any() or len(set(np.bincount(labels))) > 1:
            return None, []
        op, slot = users[0]
        if values.ndim == 2 and op.type == "MatMul" and slot == 1:
            (makers if axis == 1 else readers).append(op)
        elif not (values.ndim == 1 and op.type == "Add"):
            return None, []
    return makers, readers


def _plain(view: View, traced: Trace, group: Group) -> bool:
    """Whether nothing but products, sums with a bias, scalars and reshapes touches the group's places."""
    for (name, _), labels in group.axes.items():
        if name.startswith("#") or name in view.constants or not (labels >= 0).any():
            continue
        op = view.makers.get(name)
        if op is None or op.type not in PASSING:
            return False
        rest = [
            i for i in op.inputs if all((i, axis) not in group.axes for axis in range(len(traced.shapes.get(i) or ())))
        ]
        if op.type == "Add" and (rest or not any(i in view.constants for i in op.inputs)):
            return False
        if op.type in ("Div", "Mul") and (
            len(rest) != 1 or any(size != 1 for size in traced.shapes.get(rest[0]) or ())
        ):
            return False
    return True


def _output(view: View, op: Op) -> tuple[str, str]:
    """The tensor that a product and its bias make, and the name of the bias."""
    users = view.readers.get(op.outputs[0], [])
    if len(users) == 1 and users[0][0].type == "Add":
        other = users[0][0].inputs[1 - users[0][1]]
        if other in view.constants and view.constants[other].ndim == 1:
            return users[0][0].outputs[0], other
    return op.outputs[0], ""


def _heads(labels: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """For each head its coordinates, by place."""
    places = [np.flatnonzero(labels == unit) for unit in range(int(labels.max()) + 1)]
    return [np.array([p[h] for p in places]) for h in range(len(places[0]))]


def _gram(view: View, names: Sequence[str], feeds: Sequence[Feed], threads: int) -> dict[str, Wide]:
    runner = Runner(segment(view.model, names), threads=threads)
    sums: dict[str, Any] = {}
    for feed in feeds[:64]:
        for name, values in runner(feed).items():
            flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + flat.T @ flat / len(flat)
    return {name: np.asarray(total) / len(feeds[:64]) for name, total in sums.items()}


def _roots(gram: Wide) -> tuple[Wide, Wide]:
    """√G and its inverse."""
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, FLOOR * max(float(values[-1]), 1e-12)))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _pair(view: View, group: Group, makers: list[Op], feeds: Sequence[Feed], threads: int) -> int:
    sides = [_output(view, op) for op in makers]
    heads = [_heads(group.axes[op.inputs[1], 1]) for op in makers]
    if len(heads[0]) != len(heads[1]):
        return 0
    grams = _gram(view, [name for name, _ in sides], feeds, threads)
    turns: list[tuple[Wide, Wide]] = []
    for one, other in zip(*heads, strict=True):
        (root, back), (root2, back2) = (
            _roots(grams[name][np.ix_(at, at)]) for (name, _), at in zip(sides, (one, other), strict=True)
        )
        u, s, vt = np.linalg.svd(root @ root2)
        half = np.sqrt(np.maximum(s, 1e-12 * max(float(s[0]), 1e-12)))
        turns.append((back @ u * half, back2 @ vt.T * half))
    for side in (0, 1):
        _turn_columns(view, makers[side].inputs[1], sides[side][1], heads[side], [t[side] for t in turns])
    return 1


def _chain(view: View, group: Group, maker: Op, reader: Op, feeds: Sequence[Feed], threads: int) -> int:
    source = reader.inputs[0]
    last = max((axis for name, axis in group.axes if name == source), default=-1)
    if last < 0:
        return 0
    made, read = _heads(group.axes[maker.inputs[1], 1]), _heads(group.axes[reader.inputs[1], 0])
    gram = _gram(view, [source], feeds, threads)[source]
    if len(made) != len(read) or len(gram) != view.constants[reader.inputs[1]].shape[0]:
        return 0
    weight = view.constants[reader.inputs[1]].astype(np.float64)
    turns = []
    for at in read:
        root, back = _roots(gram[np.ix_(at, at)])
        u, s, _ = np.linalg.svd(root @ weight[at], full_matrices=True)
        size = np.zeros(len(at))
        size[: len(s)] = s
        size = np.maximum(size, 1e-6 * max(float(s[0]), 1e-12))
        turns.append(back @ u * size)
        weight[at] = (u / size).T @ root @ weight[at]
    _put(view, reader.inputs[1], weight)
    _turn_columns(view, maker.inputs[1], _output(view, maker)[1], made, turns)
    return 1


def _turn_columns(view: View, weight: str, bias: str, heads: list[NDArray[np.intp]], turns: Sequence[Wide]) -> None:
    w = view.constants[weight].astype(np.float64)
    b = view.constants[bias].astype(np.float64) if bias else np.zeros(w.shape[1])
    for at, turn in zip(heads, turns, strict=True):
        w[:, at] = w[:, at] @ turn
        b[at] = b[at] @ turn
    _put(view, weight, w)
    if bias:
        _put(view, bias, b)


def _put(view: View, name: str, values: Wide) -> None:
    import onnx

    new = values.astype(view.constants[name].dtype)
    view.constants[name] = new
    for tensor in view.model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(new, name))
