"""Operations that pack their weights in blocks: how the codes lie, what each stands for, and which one is zero.

What these operations mean is described in onnxruntime's list of contributed operators. A block is a stretch of one
output's weights that share a scale and a zero point; a weight is `(code − zero point)·scale`, or
`table[code]·scale`. A pruned weight becomes the code of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.files.coded import CodeLayout, codes_of
from emp_onnx.files.graph import Node, Tensor
from emp_onnx.weights.layout import Layout
from emp_onnx.weights.zero import Zero

__all__ = ["Blocks", "Reason", "blocks_of"]

WIDEST = 1 << 20  # elements of a block
# what the 16 codes of MatMulBnb4 stand for, in float32: FP4 (a sign, two bits of exponent, one of mantissa), and NF4
# (16 quantiles of a normal distribution, scaled to [−1, 1]; Dettmers et al. 2023, arXiv 2305.14314, appendix E)
FP4 = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32).astype(np.float64)
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32,
).astype(np.float64)  # fmt: skip
TABLES = (("fp4", np.concatenate([FP4, -FP4]), 0), ("nf4", NF4, 7))

Array = NDArray[Any]


class Reason(Exception):  # noqa: N818 - it ends a question, and is no error
    """Why a weight cannot be pruned: its code (see `Refusal`), and words."""


@dataclass(frozen=True)
class Blocks:
    """A packed weight: where its codes lie, its output units, and its zero."""

    codes: CodeLayout
    layout: Layout
    zero: Zero


@dataclass(frozen=True)
class _Asked:
    """What is known of a use: the operation, which input the weight is, and a way to read the other inputs.

    `read` gives None for an input that is no constant; an input that is not there is no business of its own.
    """

    tensor: Tensor
    node: Node
    slot: int
    read: Callable[[int], Array | None]

    def has(self, slot: int) -> bool:
        return slot < len(self.node.inputs) and bool(self.node.inputs[slot])

    def numbers(self, slot: int, what: str) -> Array:
        found = self.read(slot)
        if found is None:
            raise Reason("point", f"its {what} are computed, so what its codes stand for is not known")
        if found.dtype.kind in "fV" and not np.isfinite(found.astype(np.float32)).all():
            raise Reason("point", f"its {what} hold values that are not finite numbers")
        return found

    def sizes(self, *names: str) -> tuple[int, ...]:
        found = tuple(self.node.number(name) for name in names)
        if min(found) < 1 or max(found) >= 1 << 40:
            raise Reason("packed", f"{self.node.label} must say sizes ≥ 1 ({', '.join(names)}), got {found}")
        return found

    def bits(self, name: str = "bits") -> int:
        bits = self.node.number(name, 4)
        if bits not in (2, 4, 8):
            raise Reason("packed", f"its codes have {bits} bits; supported are 2, 4 and 8")
        return bits

    def block(self, name: str = "block_size", default: int = 0) -> int:
        block = self.node.number(name, default)
        if block < 16 or block & (block - 1) or block > WIDEST:
            raise Reason("packed", f"the blocks of {self.node.label} must be a power of 2, 16 or more, got {block}")
        return block

    def fits(self, codes: CodeLayout) -> CodeLayout:
        if self.tensor.dtype != "uint8" or self.tensor.size != codes.nbytes:
            raise Reason(
                "packed",
                f"{codes.nbytes} bytes of codes are needed for {codes.shape}, it has {self.tensor.size} numbers of "
                f"{self.tensor.dtype}",
            )
        return codes


def blocks_of(tensor: Tensor, node: Node, slot: int, read: Callable[[int], Array | None]) -> Blocks:
    """How `tensor` is packed as input `slot` of `node`; `read` gives the constants at its other inputs.

    Raises:
        Reason: it is not packed in a way that is known, or no code of it stands for exactly 0.
    """
    if node.open:
        raise Reason("packed", f"an attribute of {node.label} is given by the caller of a function")
    asked = _Asked(tensor, node, slot, read)
    return {"MatMulNBits": _nbits, "MatMulBnb4": _bnb4, "QMoE": _experts, "GatherBlockQuantized": _table}[node.op](
        asked
    )


def _nbits(asked: _Asked) -> Blocks:
    inner, outer = asked.sizes("K", "N")
    bits, block = asked.bits(), asked.block()
    if asked.node.number("weight_prepacked"):
        raise Reason("packed", "its codes lie in an order of one kind of processor (weight_prepacked)")
    count = -(-inner // block)
    codes = asked.fits(CodeLayout(bits, f"uint{bits}", (outer, inner), outer, inner, count * block))
    scale = _shaped(asked.numbers(2, "scales"), (outer, count), "scales")
    point = _points(asked, 3, bits, (outer, count))
    groups = np.arange(inner) // block
    if asked.has(4):
        groups = asked.numbers(4, "groups").reshape(-1)[:inner].astype(np.int64)
        if groups.size != inner or groups.min() < 0 or groups.max() >= count:
            raise Reason("packed", f"its groups (g_idx) must be {inner} numbers from 0 to {count - 1}")
    zero = Zero(point, scale, (outer, inner), quantised=True, groups=groups, axis=1)
    return Blocks(codes, Layout((outer, inner), (0,)), zero)


def _bnb4(asked: _Asked) -> Blocks:
    inner, outer = asked.sizes("K", "N")
    kind, block = asked.node.number("quant_type", -1), asked.block()
    if kind not in (0, 1):
        raise Reason("packed", f"its table must be 0 (FP4) or 1 (NF4), got {kind}")
    name, table, zero_code = TABLES[kind]
    size = inner * outer
    codes = asked.fits(CodeLayout(4, name, (outer, inner), 1, size, size, high=True))
    scale = _shaped(asked.numbers(2, "scales"), (-(-size // block),), "scales")
    point = np.array(zero_code, np.int64)
    # the blocks go on over the ends of rows
    zero = Zero(point, scale, (size,), quantised=True, groups=_Stretches(size, block), axis=0, table=table)
    return Blocks(codes, Layout((outer, inner), (0 if asked.node.number("transB", 1) else 1,)), zero)


def _experts(asked: _Asked) -> Blocks:
    which = (asked.slot - 2) // 3  # fc1, fc2, fc3
    if asked.node.attributes.get("quant_type", "int") != "int":
        raise Reason("packed", "experts of floating-point codes are not supported")
    if asked.node.number("weights_prepacked", -1):
        raise Reason("packed", "its codes may lie in an order of one kind of processor (weights_prepacked is not 0)")
    default = asked.node.number("expert_weight_bits", 4)
    bits = asked.node.number(f"fc{which + 1}_expert_weight_bits", default)
    if bits not in (2, 4, 8) or len(asked.tensor.shape) != 3:
        raise Reason("packed", "experts are three-dimensional, in codes of 2, 4 or 8 bits; these are not")
    experts, outer, wide = asked.tensor.shape
    inner = wide * 8 // bits
    codes = asked.fits(CodeLayout(bits, f"uint{bits}", (experts, outer, inner), experts * outer, inner, inner))
    block = asked.block() if asked.node.number("block_size") else inner
    count = -(-inner // block)
    scale = _shaped(asked.numbers(asked.slot + 1, "scales"), (experts, outer, count), "scales")
    if asked.has(11 + which) and count == 1 and not asked.node.number("block_size"):
        raw = asked.numbers(11 + which, "zero points")
        point: Array = _unpacked(raw, bits, experts, outer).reshape(experts, outer, 1)
    else:
        point = _points(asked, 11 + which, bits, (experts * outer, count))
        point = point.reshape(experts, outer, count) if point.size > 1 else point
    zero = Zero(point, scale, codes.shape, quantised=True, groups=np.arange(inner) // block, axis=2)
    return Blocks(codes, Layout(codes.shape, (0, 1)), zero)


def _table(asked: _Asked) -> Blocks:
    bits, block = asked.bits(), asked.block(default=128)
    shape = asked.tensor.shape
    axes = asked.node.number("gather_axis"), asked.node.number("quantize_axis", 1)
    if asked.tensor.dtype != "uint8" or len(shape) != 2 or axes[0] not in (0, -2) or axes[1] not in (1, -1):
        raise Reason("packed", "only tables of two dimensions, in uint8, with blocks along the second, are supported")
    entries, inner = shape[0], shape[1] * 8 // bits
    codes = asked.fits(CodeLayout(bits, f"uint{bits}", (entries, inner), entries, inner, inner))
    count = -(-inner // block)
    scale = _shaped(asked.numbers(2, "scales"), (entries, count), "scales")
    point = _points(asked, 3, bits, (entries, count))
    zero = Zero(point, scale, codes.shape, quantised=True, groups=np.arange(inner) // block, axis=1)
    return Blocks(codes, Layout(codes.shape, (0,)), zero)


class _Stretches:
    """`index // block` of every index below `size`, made when some are asked for."""

    def __init__(self, size: int, block: int) -> None:
        self.size, self.block = size, block

    def __getitem__(self, part: slice) -> Array:
        return np.arange(*part.indices(self.size)) // self.block


def _points(asked: _Asked, slot: int, bits: int, shape: tuple[int, int]) -> Array:
    """The zero point of every block: packed like the codes, or as numbers; 2^(bits−1) where none are given."""
    if not asked.has(slot):
        return np.array(1 << (bits - 1), np.int64)
    found = asked.numbers(slot, "zero points")
    if found.dtype == np.uint8:
        return _unpacked(found, bits, *shape)
    numbers = _shaped(found, shape, "zero points").astype(np.float64)
    codes = np.clip(numbers, 0, 2**bits - 1).astype(np.uint8)
    if not np.array_equal(codes, numbers):
        raise Reason("point", "its zero points are not all among its codes, so no code stands for exactly 0")
    return codes


def _unpacked(raw: Array, bits: int, rows: int, width: int) -> Array:
    """Codes packed row by row, each row filled up to a byte."""
    wide = -(-width * bits // 8)
    return codes_of(_shaped(raw, (rows, wide), "zero points").reshape(-1), bits).reshape(rows, -1)[:, :width].copy()


def _shaped(array: Array, shape: tuple[int, ...], what: str) -> Array:
    if array.size != np.prod(shape, dtype=object):
        raise Reason("point", f"its {what} must be {shape}, got {array.shape}")
    return array.reshape(shape)
