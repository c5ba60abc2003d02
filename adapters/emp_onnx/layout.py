"""Which inputs of an operation are weights, and how the axes of a weight lie: one table that all else follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["SLOTS", "Layout", "layout_of"]

# operation -> the inputs that are weights
SLOTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}


@dataclass(frozen=True)
class Layout:
    """How to see a weight's output units: reshaped to `view`, each index along `axes` is one unit."""

    view: tuple[int, ...]
    axes: tuple[int, ...]


def layout_of(op: str, slot: int, shape: Sequence[int], attributes: Mapping[str, int]) -> Layout | str:
    """The output units of the weight at input `slot` of `op`, or the reason why it has none.

    | operation | shape | one unit per |
    |---|---|---|
    | Conv | (out, in/group, …) | out |
    | ConvTranspose | (in, out/group, …) | group and out/group |
    | Gemm, A (in rows: transA=0) and B (in columns: transB=0) | (a, b) | row, column of the product |
    | MatMul, right | (…, in, out) | batch index and out |
    | MatMul, left | (…, out, in) | batch index and out |
    | LSTM, GRU, RNN (W and R) | (directions, gates·hidden, in) | direction and gate unit |

    Example:
        >>> layout_of("Gemm", 1, (8, 3), {"transB": 1})
        Layout(view=(8, 3), axes=(0,))
    """
    shape, rank = tuple(shape), len(shape)
    if rank < 2:
        return "a scalar is not a weight" if rank == 0 else "one-dimensional: it has no output units"
    if op == "Conv":
        return Layout(shape, (0,))
    if op == "ConvTranspose":
        groups = attributes.get("group", 1)
        if groups < 1 or shape[0] % groups:
            return f"{shape[0]} input channels do not divide into {groups} groups"
        return Layout(shape, (1,)) if groups == 1 else Layout((groups, shape[0] // groups, *shape[1:]), (0, 2))
    if op == "Gemm":
        if rank != 2:
            return f"Gemm takes matrices, this has {rank} dimensions"
        flipped = bool(attributes.get("transB" if slot else "transA", 0))
        return Layout(shape, (0 if flipped == bool(slot) else 1,))
    if op == "MatMul":
        return Layout(shape, (*range(rank - 2), rank - 1 if slot else rank - 2))
    if rank != 3:
        return f"{op} takes weights of 3 dimensions, this has {rank}"
    return Layout(shape, (0, 1))
