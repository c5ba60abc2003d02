"""Which inputs of an operation are weights, and how the axes of a weight lie: one table that all else follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["SLOTS", "Layout", "Slot", "canonical", "layout_of", "separate", "transposed", "units"]

Attributes = Mapping[str, object]


@dataclass(frozen=True)
class Layout:
    """How to see a weight's output units: reshaped to `view`, each index along `axes` is one unit."""

    view: tuple[int, ...]
    axes: tuple[int, ...]


Rule = Callable[[tuple[int, ...], Attributes, int], "Layout | str | None"]


@dataclass(frozen=True)
class Slot:
    """One input that is a weight.

    Attributes:
        index: which input.
        rule: shape, attributes and input number to the output units, or None where they are not known.
        scale: the input with the scale of a quantised weight, if the operation has one.
        point: the input with its zero point.
        along: where a scale or zero point of one dimension lies: `first` or `last` axis, `rows` (last but one), or
            `directions` (first, then last).
        quantised: whether the weight is quantised, its zero point 0 unless another is given.
        packed: whether it is packed in blocks (see `blocks.py`, which then takes the place of all the above).
    """

    index: int
    rule: Rule
    scale: int | None = None
    point: int | None = None
    along: str = "last"
    quantised: bool = False
    packed: bool = False


def _number(attributes: Attributes, name: str, default: int = 0) -> int:
    found = attributes.get(name, default)
    return found if isinstance(found, int) else default


def _conv(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    return Layout(shape, (0,))


def _conv_transpose(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    groups = _number(attributes, "group", 1)
    if groups < 1 or shape[0] % groups:
        return f"{shape[0]} input channels do not divide into {groups} groups"
    return Layout(shape, (1,)) if groups == 1 else Layout((groups, shape[0] // groups, *shape[1:]), (0, 2))


def _gemm(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    if len(shape) != 2:
        return f"Gemm takes matrices, this has {len(shape)} dimensions"
    flipped = bool(_number(attributes, "transB" if slot else "transA"))
    return Layout(shape, (0 if flipped == bool(slot) else 1,))


def _matmul(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    rank = len(shape)
    return Layout(shape, (*range(rank - 2), rank - 1 if slot else rank - 2))


def _fused_matmul(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    side, rank = "B" if slot else "A", len(shape)
    if _number(attributes, f"transBatch{side}"):
        return None
    flipped = bool(_number(attributes, f"trans{side}"))
    return Layout(shape, (*range(rank - 2), rank - 2 if flipped == bool(slot) else rank - 1))


def _recurrent(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    return Layout(shape, (0, 1)) if len(shape) == 3 else f"weights of 3 dimensions are needed, this has {len(shape)}"


def _recurrent_columns(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    return Layout(shape, (0, 2)) if len(shape) == 3 else f"weights of 3 dimensions are needed, this has {len(shape)}"


def _columns(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    return Layout(shape, (len(shape) - 1,))


def _embedding(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    axis = _number(attributes, "axis")
    return Layout(shape, (axis % len(shape),)) if -len(shape) <= axis < len(shape) else None


def _einsum(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    """The axes whose letters stand in the output; None where the equation is not known or does not fit."""
    equation = attributes.get("equation")
    if not isinstance(equation, str):
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [term.replace("...", ".") for term in left.split(",")]
    letters = "".join(terms)
    out = right.replace("...", ".") if arrow else "." + "".join(c for c in set(letters) if letters.count(c) == 1)
    if slot >= len(terms):
        return None
    term = terms[slot]
    spread = len(shape) - len(term.replace(".", ""))
    if spread < 0 or ("." not in term and spread):
        return None
    names = [letter for c in term for letter in ([c] * spread if c == "." else [c])]
    axes = tuple(axis for axis, letter in enumerate(names) if letter in out)
    return Layout(shape, axes) if axes else None


def _experts(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    return Layout(shape, (0, 1)) if len(shape) == 3 else f"experts have 3 dimensions, this has {len(shape)}"


def _unknown(shape: tuple[int, ...], attributes: Attributes, slot: int) -> Layout | str | None:
    return None


MS = "com.microsoft"
# (domain, operation) -> the inputs that are weights
SLOTS: Mapping[tuple[str, str], tuple[Slot, ...]] = {
    ("", "Conv"): (Slot(1, _conv),),
    ("", "ConvTranspose"): (Slot(1, _conv_transpose),),
    ("", "DeformConv"): (Slot(1, _conv),),
    ("", "Gemm"): (Slot(0, _gemm), Slot(1, _gemm)),
    ("", "MatMul"): (Slot(0, _matmul), Slot(1, _matmul)),
    ("", "LSTM"): (Slot(1, _recurrent), Slot(2, _recurrent)),
    ("", "GRU"): (Slot(1, _recurrent), Slot(2, _recurrent)),
    ("", "RNN"): (Slot(1, _recurrent), Slot(2, _recurrent)),
    ("", "Einsum"): tuple(Slot(i, _einsum) for i in range(8)),
    ("", "QLinearConv"): (Slot(3, _conv, 4, 5, "first", True),),
    ("", "QLinearMatMul"): (Slot(0, _matmul, 1, 2, "rows", True), Slot(3, _matmul, 4, 5, "last", True)),
    ("", "ConvInteger"): (Slot(1, _conv, None, 3, "first", True),),
    ("", "MatMulInteger"): (Slot(0, _matmul, None, 2, "rows", True), Slot(1, _matmul, None, 3, "last", True)),
    (MS, "QLinearConv"): (Slot(3, _conv, 4, 5, "first", True),),
    (MS, "QGemm"): (Slot(3, _gemm, 4, 5, "units", True),),
    (MS, "DynamicQuantizeMatMul"): (Slot(1, _matmul, 2, 3, "last", True),),
    (MS, "MatMulIntegerToFloat"): (Slot(0, _matmul, 2, 4, "rows", True), Slot(1, _matmul, 3, 5, "last", True)),
    (MS, "MatMulInteger16"): (Slot(0, _matmul, quantised=True), Slot(1, _matmul, quantised=True)),
    (MS, "DynamicQuantizeLSTM"): (
        Slot(1, _recurrent_columns, 8, 9, "directions", True),
        Slot(2, _recurrent_columns, 10, 11, "directions", True),
    ),
    (MS, "QAttention"): (Slot(1, _columns, 4, 7, "last", True),),
    (MS, "Attention"): (Slot(1, _columns),),
    (MS, "PackedAttention"): (Slot(1, _columns),),
    (MS, "LongformerAttention"): (Slot(1, _columns), Slot(4, _columns)),
    (MS, "DecoderAttention"): (Slot(2, _columns), Slot(3, _columns)),
    (MS, "ConvTransposeWithDynamicPads"): (Slot(1, _conv_transpose),),
    (MS, "FusedConv"): (Slot(1, _conv),),
    (MS, "NhwcFusedConv"): (Slot(1, _conv),),
    (MS, "NhwcConv"): (Slot(1, _conv),),
    (MS, "FusedGemm"): (Slot(0, _gemm), Slot(1, _gemm)),
    (MS, "GemmFastGelu"): (Slot(1, _gemm),),
    (MS, "GemmFloat8"): (Slot(0, _gemm), Slot(1, _gemm)),
    (MS, "FusedMatMul"): (Slot(0, _fused_matmul), Slot(1, _fused_matmul)),
    (MS, "FusedMatMulActivation"): (Slot(0, _fused_matmul), Slot(1, _fused_matmul)),
    (MS, "TransposeMatMul"): (Slot(0, _fused_matmul), Slot(1, _fused_matmul)),
    (MS, "MoE"): tuple(Slot(i, _experts) for i in (2, 4, 6)),
    (MS, "QMoE"): tuple(Slot(i, _unknown, quantised=True, packed=True) for i in (2, 5, 8)),
    (MS, "MatMulNBits"): (Slot(1, _unknown, quantised=True, packed=True),),
    (MS, "MatMulBnb4"): (Slot(1, _unknown, quantised=True, packed=True),),
    ("com.microsoft.nchwc", "Conv"): (Slot(1, _unknown),),
}
# pruned only if asked for
EMBEDDINGS: Mapping[tuple[str, str], tuple[Slot, ...]] = {
    ("", "Gather"): (Slot(0, _embedding),),
    (MS, "EmbedLayerNormalization"): tuple(Slot(i, _embedding) for i in (2, 3, 4)),
    (MS, "GatherBlockQuantized"): (Slot(0, _unknown, quantised=True, packed=True),),
}
# weights that are left alone, and why
LEFT: Mapping[tuple[str, str], tuple[tuple[int, ...], str]] = {
    (MS, "MatMulFpQ4"): ((1,), "MatMulFpQ4 packs its weights in blocks, several to a byte: that is not supported"),
    (MS, "QEmbedLayerNormalization"): ((2, 3, 4), "a quantised embedding table is not supported"),
}


def layout_of(
    op: str, slot: int, shape: Sequence[int], attributes: Attributes, domain: str = ""
) -> Layout | str | None:
    """The output units of the weight at input `slot` of `op`; None if not known; or the reason why it is no weight.

    | operation | shape | one unit per |
    |---|---|---|
    | Conv, QLinearConv, ConvInteger, FusedConv, … | (out, in/group, …) | out |
    | ConvTranspose | (in, out/group, …) | group and out/group |
    | Gemm, A (in rows: transA=0) and B (in columns: transB=0) | (a, b) | row, column of the product |
    | MatMul, right; also FusedMatMul, QLinearMatMul, … | (…, in, out) | batch index and out |
    | MatMul, left | (…, out, in) | batch index and out |
    | LSTM, GRU, RNN (W and R) | (directions, gates·hidden, in) | direction and gate unit |
    | DynamicQuantizeLSTM | (directions, in, gates·hidden) | direction and gate unit |
    | Attention, QAttention | (in, out) | out |
    | Einsum | as the equation says | letters that stand in the output |
    | MoE | (experts, out, in) | expert and out |
    | Gather (embedding) | (…, entries, …) | entry |

    Weights that are packed in blocks have their units from `blocks.py`.

    Example:
        >>> layout_of("Gemm", 1, (8, 3), {"transB": 1})
        Layout(view=(8, 3), axes=(0,))
    """
    shape = tuple(shape)
    if len(shape) < 2:
        return units(Slot(slot, _unknown), op, shape, attributes)
    for item in (*SLOTS.get((domain, op), ()), *EMBEDDINGS.get((domain, op), ())):
        if item.index == slot:
            return units(item, op, shape, attributes)
    return None


def units(slot: Slot, op: str, shape: tuple[int, ...], attributes: Attributes) -> Layout | str | None:
    """`layout_of` for a slot already found."""
    if len(shape) < 2:
        return "one-dimensional: it has no output units" if shape else "a scalar is not a weight"
    return slot.rule(shape, attributes, min(slot.index, 1) if op != "Einsum" else slot.index)


def _refined(layout: Layout, shape: tuple[int, ...]) -> list[list[tuple[int, bool]]] | None:
    """The view's factors, split so that each axis of `shape` is a product of some; None if they do not fit so."""
    factors = [(size, axis in layout.axes) for axis, size in enumerate(layout.view)]
    out: list[list[tuple[int, bool]]] = []
    for size in shape:
        group: list[tuple[int, bool]] = []
        while size > 1:
            if not factors:
                return None
            have, flag = factors.pop(0)
            common = math.gcd(size, have)
            if common not in (size, have):
                return None
            # the slower part of a factor comes first
            if have > size:
                factors.insert(0, (have // size, flag))
                have = size
            group.append((have, flag))
            size //= have
        out.append(group)
    return out if all(size == 1 for size, _ in factors) else None


def transposed(layout: Layout, shape: Sequence[int], perm: Sequence[int]) -> Layout | None:
    """The layout of a tensor of `shape`, given that of the same tensor transposed by `perm`; None if it has none.

    Example:
        >>> transposed(Layout((3, 4), (1,)), (4, 3), (1, 0))
        Layout(view=(4, 3), axes=(0,))
    """
    groups = _refined(layout, tuple(shape[axis] for axis in perm))
    if groups is None:
        return None
    back: list[list[tuple[int, bool]]] = [[] for _ in perm]
    for group, axis in zip(groups, perm, strict=True):
        # an axis of size 1 has no factors, yet a place in the shape
        back[axis] = group or [(1, False)]
    factors = [factor for group in back for factor in group]
    return Layout(tuple(size for size, _ in factors), tuple(i for i, (_, flag) in enumerate(factors) if flag))


def separate(layout: Layout, shape: Sequence[int], axis: int) -> bool:
    """Whether every index along this axis of `shape` is a unit of its own."""
    groups = _refined(layout, tuple(shape))
    return groups is not None and all(flag for _, flag in groups[axis])


def canonical(layout: Layout) -> tuple[tuple[int, bool], ...]:
    """Equal for two layouts exactly when they have the same units: no axes of size 1, neighbours of a kind as one."""
    out: list[tuple[int, bool]] = []
    for axis, size in enumerate(layout.view):
        flag = axis in layout.axes
        if size != 1:
            if out and out[-1][1] == flag:
                out[-1] = (out[-1][0] * size, flag)
            else:
                out.append((size, flag))
    return tuple(out)
