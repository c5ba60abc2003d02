"""The functions of the domain `effective_pruning.packed`: how a packed tensor becomes dense, in standard operations.

A packed tensor is one node of this domain that makes it. The node's attribute `shape` is the tensor's shape; its inputs
are initializers. `values` begins with the fill (what stands wherever nothing is stored: 0, or a zero point), then come
the stored values in flat order. In which places they stand is said in one of these ways:

- `UnpackMask` (mask: uint8): one bit per element, the lowest bit of a byte first; 1 = stored.
- `UnpackParts4`, `UnpackParts8`: the same in so many parts, each of some rows of the tensor (of its first axis: see
  `cuts`), and each with values that begin with the fill. The masks of all parts are given first, then all values.
- `UnpackMask4`: the same as `UnpackMask`, unpacked in four parts: what version 1 had, and sidecar files still have.
- `UnpackEarly` (mask: uint8, starts: int32, size: int64): the same for opsets 7 to 10: the mask is filled up to whole
  groups of 64 bytes, `starts` says how many values are stored before each; `size` is the shape once more.
- `UnpackBlocks` (mask: uint8): one bit per block of neighbouring elements; `values` has a row for each stored block.
- `UnpackGaps4` (codes: uint8): for each stored value the number of elements skipped before it, in 4 bits, the lower
  half of a byte first; the code 15 skips 15 elements and stores nothing.
- `UnpackGaps6` (codes, high: uint8): the same in 6 bits: lower 4 bits as above, upper 2 bits four to a byte; the code
  63 skips 63.
- `UnpackGaps8` (codes: uint8): the same in 8 bits; the code 255 skips 255.

`count` is the number of codes, `ends` that of elements. The last inputs, `after`, are 0.0: see `Stage`,
which delays the unpacking.

Why the bodies are as they are: onnxruntime folds them when it loads the model, and keeps every intermediate result
until the pass over the whole graph has ended. Each operation's inputs are copied before it is folded. So intermediates
are few and short, a large tensor is unpacked in parts, each of which has values of its own, and a `Stage` makes one
pass wait for the one before: its Add becomes a constant only after the rule that removes additions of 0 has run, which
is once per pass. Where nothing is folded all of this computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from emp_onnx.files.emit import constant, function, node
from emp_onnx.files.reader import DOMAIN

__all__ = [
    "DOMAIN", "EARLY", "EARLY_OPSET", "GROUP", "LEAST_OPSET", "PARTS", "STAGE", "VERSION", "cut_in", "cuts",
    "function_bytes",
]  # fmt: skip

VERSION = 2
LEAST_OPSET = 11  # the first with CumSum
EARLY, EARLY_OPSET, GROUP = "UnpackEarly", 7, 64  # without it; and how many bytes of a mask have a start of their own
# how many inputs `after` a function has, if not 1
PARTS = {"UnpackMask4": 4, "UnpackParts4": 4, "UnpackParts8": 8, EARLY: 0}
STAGE = "Stage"
BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.int32)
FLOAT, INT32, INT64 = 1, 6, 7


def function_bytes(name: str, opset: int) -> bytes:
    """The local function `name`, for a model of this opset.

    Raises:
        KeyError: there is no such function.
    """
    inputs, attributes, body = FUNCTIONS[name]
    nodes = body(opset)
    outputs = ["next"] if name == STAGE else ["dense"]
    return function(name, DOMAIN, inputs, outputs, nodes, opset, attributes=attributes)


def cut_in(function: str) -> int:
    """In how many parts this function takes a tensor; 0: not in parts."""
    return PARTS[function] if function in PARTS and function.startswith("UnpackParts") else 0


def cuts(shape: Sequence[int], parts: int) -> list[int]:
    """Where the parts of a tensor begin, and where the last ends: whole rows, as like in number as can be.

    >>> cuts((10, 8), 4)
    [0, 16, 40, 56, 80]
    """
    row = math.prod(shape[1:])
    return [shape[0] * i // parts * row for i in range(parts + 1)]


def _positive(opset: int, given: str, out: str) -> list[bytes]:
    """`given`, and 0 where it is negative."""
    if opset >= 14:
        return [node("Relu", [given], [out])]
    if opset >= 12:
        return [node("Max", [given, "zero"], [out])]
    over = f"{out}_over"
    return [node("Greater", [given, "zero"], [over]), node("Where", [over, given, "zero"], [out])]


def _mask_constants(parts: int) -> list[bytes]:
    """Tables from a byte of the mask: how many bits are set; for each its rank among them, from 1, or far below 0."""
    count = BITS.sum(axis=1).astype(np.int8)
    rank = np.where(BITS == 1, np.cumsum(BITS, axis=1), -1).astype(np.int8)
    out = [
        constant("zero", np.array(0, np.int32)), constant("small_count", count), constant("small_rank", rank),
        node("Cast", ["small_count"], ["table_count"], {"to": INT32}),
        node("Cast", ["small_rank"], ["wide"], {"to": INT32}),
        constant("below", np.array(-(2**30), np.int32)), node("Less", ["wide", "zero"], ["unset"]),
        node("Where", ["unset", "below", "wide"], ["table_rank"]),
        constant("axis", np.array(0, np.int32)),
        constant("column", np.array([-1, 1], np.int64)), node("Constant", [], ["size"], borrowed={"value": "shape"}),
        constant("flat", np.array([-1], np.int64)), constant("first", np.array([0], np.int64)),
    ]  # fmt: skip
    return out if parts == 1 else [*out, *_parts(parts)]


def _parts(parts: int) -> list[bytes]:
    """Where each part of the mask begins and ends, and the shape of what it makes: a range of the first axis."""
    out = [
        constant("one", np.array([1], np.int64)), constant("last", np.array([64], np.int64)),
        constant("many", np.array([parts], np.int64)), node("Slice", ["size", "one", "last"], ["tail"]),
        node("Concat", ["flat", "tail"], ["part_size"], {"axis": 0}), node("Shape", ["mask"], ["bytes"]),
        node("Div", ["bytes", "many"], ["end_0"]),
    ]  # fmt: skip
    return [*out, *(node("Add", [f"end_{i}", "end_0"], [f"end_{i + 1}"]) for i in range(parts - 1))]


def _ranks(opset: int, mask: str, after: str, i: int, before: str) -> list[bytes]:
    """For each bit of a part of the mask which of the values belongs there: 0, the fill, where the bit is not set."""
    out = [
        node("Cast", [mask], [f"plain_{i}"], {"to": INT32}), node("Cast", [after], [f"after_{i}_int"], {"to": INT32}),
        node("Add", [f"plain_{i}", f"after_{i}_int"], [f"byte_{i}"]),
        node("Gather", ["table_count", f"byte_{i}"], [f"count_{i}"]),
        node("CumSum", [f"count_{i}", "axis"], [f"base_{i}"], {"exclusive": 1}),
    ]  # fmt: skip
    base = f"base_{i}"
    if before:
        out += [node("Add", [base, before], [f"sum_{i}"])]
        base = f"sum_{i}"
    return [
        *out, node("Reshape", [base, "column"], [f"bases_{i}"]),
        node("Gather", ["table_rank", f"byte_{i}"], [f"rank_{i}"]),
        node("Add", [f"rank_{i}", f"bases_{i}"], [f"place_{i}"]), *_positive(opset, f"place_{i}", f"index_{i}"),
    ]  # fmt: skip


def _mask(opset: int) -> list[bytes]:
    return [
        *_mask_constants(1), *_ranks(opset, "mask", "after", 0, ""), node("Reshape", ["index_0", "flat"], ["line"]),
        node("ReduceProd", ["size"], ["many"], {"keepdims": 1}), node("Slice", ["line", "first", "many"], ["exact"]),
        node("Reshape", ["exact", "size"], ["index"]), node("Gather", ["values", "index"], ["dense"]),
    ]  # fmt: skip


def _mask4(opset: int) -> list[bytes]:
    out, before = _mask_constants(4), ""
    for i in range(4):
        start = "first" if i == 0 else f"end_{i - 1}"
        out += [node("Slice", ["mask", start, f"end_{i}"], [f"mask_{i}"])]
        out += _ranks(opset, f"mask_{i}", f"after_{i}", i, before)
        if i < 3:
            out += [node("ReduceSum", [f"count_{i}"], [f"total_{i}"], {"keepdims": 0})]
            after = f"total_{i}" if not before else f"before_{i}"
            out += [] if not before else [node("Add", [before, f"total_{i}"], [after])]
            before = after
        out += [node("Reshape", [f"index_{i}", "part_size"], [f"where_{i}"])]
        out += [node("Gather", ["values", f"where_{i}"], [f"part_{i}"])]
    return [*out, node("Concat", [f"part_{i}" for i in range(4)], ["dense"], {"axis": 0})]


def _cut(parts: int) -> Callable[[int], list[bytes]]:
    def body(opset: int) -> list[bytes]:
        out = [
            *_mask_constants(1), node("Reshape", ["table_count", "column"], ["counts"]),
            constant("one", np.array([1], np.int64)), constant("last", np.array([64], np.int64)),
            node("Slice", ["size", "one", "last"], ["tail"]),
            node("Concat", ["flat", "tail"], ["part_size"], {"axis": 0}),
        ]  # fmt: skip
        for i in range(parts):
            # what delays is the shape of the bytes: nothing of a later part is made before
            out += [
                node("Cast", [f"after_{i}"], [f"delay_{i}"], {"to": INT64}),
                node("Add", ["flat", f"delay_{i}"], [f"line_{i}"]),
                node("Reshape", [f"mask_{i}", f"line_{i}"], [f"plain_{i}"]),
                node("Cast", [f"plain_{i}"], [f"byte_{i}"], {"to": INT32}),
                node("Gather", ["counts", f"byte_{i}"], [f"count_{i}"]),
                node("CumSum", [f"count_{i}", "axis"], [f"base_{i}"], {"exclusive": 1}),
                node("Gather", ["table_rank", f"byte_{i}"], [f"rank_{i}"]),
                node("Add", [f"rank_{i}", f"base_{i}"], [f"place_{i}"]), *_positive(opset, f"place_{i}", f"index_{i}"),
                node("Reshape", [f"index_{i}", "part_size"], [f"where_{i}"]),
                node("Gather", [f"values_{i}", f"where_{i}"], [f"part_{i}"]),
            ]  # fmt: skip
        return [*out, node("Concat", [f"part_{i}" for i in range(parts)], ["dense"], {"axis": 0})]

    return body


def _blocks(opset: int) -> list[bytes]:
    return [
        *_mask_constants(1), *_ranks(opset, "mask", "after", 0, ""), node("Reshape", ["index_0", "flat"], ["line"]),
        constant("one", np.array([1], np.int64)), constant("two", np.array([2], np.int64)),
        node("Shape", ["values"], ["sizes"]), node("Slice", ["sizes", "one", "two"], ["width"]),
        node("ReduceProd", ["size"], ["many"], {"keepdims": 1}), node("Div", ["many", "width"], ["blocks"]),
        node("Slice", ["line", "first", "blocks"], ["index"]),
        node("Gather", ["values", "index"], ["rows"]), node("Reshape", ["rows", "size"], ["dense"]),
    ]  # fmt: skip


def _early(opset: int) -> list[bytes]:
    upper = np.triu(np.ones((GROUP, GROUP), np.float32), 1)
    rank = (np.cumsum(BITS, axis=1) * BITS).astype(np.int8)
    # Constant has floats only before opset 9
    small = [
        ("counts", BITS.sum(axis=1), FLOAT), ("ranks", rank, INT32), ("bits", BITS, INT32), ("upper", upper, FLOAT),
        ("group", np.array([-1, GROUP]), INT64), ("column", np.array([-1, 1]), INT64), ("flat", np.array([-1]), INT64),
    ]  # fmt: skip
    out = [
        *(constant(f"small_{name}", array.astype(np.float16)) for name, array, _ in small),
        *(node("Cast", [f"small_{name}"], [name], {"to": kind}) for name, _, kind in small),
        node("Cast", ["mask"], ["byte"], {"to": INT32}), node("Gather", ["counts", "byte"], ["count"]),
        node("Reshape", ["count", "group"], ["grouped"]), node("MatMul", ["grouped", "upper"], ["before"]),
        node("Cast", ["before"], ["inner"], {"to": INT32}), node("Reshape", ["starts", "column"], ["outer"]),
        node("Add", ["inner", "outer"], ["base"]), node("Reshape", ["base", "column"], ["bases"]),
        node("Gather", ["ranks", "byte"], ["rank"]), node("Gather", ["bits", "byte"], ["bit"]),
        node("Mul", ["bit", "bases"], ["set"]), node("Add", ["set", "rank"], ["place"]),
        node("Reshape", ["place", "flat"], ["line"]),
    ]  # fmt: skip
    if opset < 10:
        out += [node("Slice", ["line"], ["exact"], {"starts": (0,)}, borrowed={"ends": "ends…"})]
    else:
        out += [constant("first", np.array([0], np.int64)), node("ReduceProd", ["size"], ["many"], {"keepdims": 1})]
        out += [node("Slice", ["line", "first", "many"], ["exact"])]
    return [*out, node("Reshape", ["exact", "size"], ["index"]), node("Gather", ["values", "index"], ["dense"])]


def _fields(source: str, bits: int, out: str, i: int) -> list[bytes]:
    """Numbers of so many bits, out of the bytes that hold several, the lowest bits first."""
    table = np.arange(256)[:, None] >> np.arange(0, 8, bits)[None, :] & (1 << bits) - 1
    wide = [node("Cast", [source], [f"plain_{i}"], {"to": INT32})]
    if bits == 8:
        return [*wide, node("Add", [f"plain_{i}", "delay"], [out])]
    return [
        *wide, constant(f"small_{i}", table.astype(np.int8)),
        node("Cast", [f"small_{i}"], [f"table_{i}"], {"to": INT32}),
        node("Add", [f"plain_{i}", "delay"], [f"byte_{i}"]),
        node("Gather", [f"table_{i}", f"byte_{i}"], [f"several_{i}"]),
        node("Reshape", [f"several_{i}", "flat"], [f"line_{i}"]),
        node("Slice", [f"line_{i}", "first", "many"], [out]),
    ]  # fmt: skip


def _gaps(bits: int) -> Callable[[int], list[bytes]]:
    def body(opset: int) -> list[bytes]:
        escape = np.array((1 << bits) - 1, np.int32)
        out = [
            constant("flat", np.array([-1], np.int64)), constant("first", np.array([0], np.int64)),
            constant("axis", np.array(0, np.int32)), constant("one", np.array(1, np.int32)),
            constant("escape", escape), node("Constant", [], ["size"], borrowed={"value": "shape"}),
            node("Constant", [], ["many"], borrowed={"value": "count"}),
            node("Cast", ["after"], ["delay"], {"to": INT32}),
        ]  # fmt: skip
        if bits == 6:
            out += [*_fields("codes", 4, "low", 0), *_fields("high", 2, "top", 1), constant("sixteen", escape // 4 + 1)]
            out += [node("Mul", ["top", "sixteen"], ["shifted"]), node("Add", ["low", "shifted"], ["code"])]
        else:
            out += _fields("codes", bits, "code", 0)
        return [
            *out, node("Less", ["code", "escape"], ["is_value"]), node("Cast", ["is_value"], ["value"], {"to": INT32}),
            node("Add", ["code", "value"], ["step"]), node("CumSum", ["step", "axis"], ["end"]),
            node("Sub", ["end", "one"], ["place"]), node("CumSum", ["value", "axis"], ["rank"]),
            node("Mul", ["rank", "value"], ["index"]), node("Gather", ["values", "index"], ["update"]),
            constant("second", np.array([1], np.int64)), node("Slice", ["values", "first", "second"], ["fill"]),
            node("ReduceProd", ["size"], ["all"], {"keepdims": 1}), node("Expand", ["fill", "all"], ["empty"]),
            node("ScatterElements", ["empty", "place", "update"], ["line"], {"axis": 0}),
            node("Reshape", ["line", "size"], ["dense"]),
        ]  # fmt: skip

    return body


def _stage(opset: int) -> list[bytes]:
    # what the rule makes of this: once `after` is known to be 0, the Add is removed; only then the rest is folded
    return [
        constant("middle", np.array(128, np.uint8)), constant("scale", np.array(1, np.float32)),
        node("DequantizeLinear", ["middle", "scale", "middle"], ["plain"]), node("Neg", ["plain"], ["other"]),
        node("Add", ["other", "after"], ["sum"]), node("QuantizeLinear", ["sum", "scale", "middle"], ["again"]),
        node("Cast", ["again"], ["found"], {"to": FLOAT}), node("Cast", ["middle"], ["wanted"], {"to": FLOAT}),
        node("Sub", ["found", "wanted"], ["next"]),
    ]  # fmt: skip


def _parts_inputs(parts: int) -> list[str]:
    return [f"{name}_{i}" for name in ("mask", "values", "after") for i in range(parts)]


Made = tuple[list[str], list[str], Callable[[int], list[bytes]]]
FUNCTIONS: dict[str, Made] = {
    "UnpackMask": (["mask", "values", "after"], ["shape"], _mask),
    "UnpackMask4": (["mask", "values", "after_0", "after_1", "after_2", "after_3"], ["shape"], _mask4),
    "UnpackParts4": (_parts_inputs(4), ["shape"], _cut(4)),
    "UnpackParts8": (_parts_inputs(8), ["shape"], _cut(8)),
    EARLY: (["mask", "starts", "size", "values"], ["shape", "ends"], _early),
    "UnpackBlocks": (["mask", "values", "after"], ["shape"], _blocks),
    "UnpackGaps4": (["codes", "values", "after"], ["shape", "count"], _gaps(4)),
    "UnpackGaps6": (["codes", "high", "values", "after"], ["shape", "count"], _gaps(6)),
    "UnpackGaps8": (["codes", "values", "after"], ["shape", "count"], _gaps(8)),
    STAGE: (["after"], [], _stage),
}
