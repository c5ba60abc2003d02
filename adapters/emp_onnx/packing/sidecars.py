"""What a new sidecar consists of, when tensors of the old one are stored in other forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from emp_onnx.files.graph import Tensor
from emp_onnx.files.model_io import Model
from emp_onnx.files.wire import Blob, Piece
from emp_onnx.packing.places import Chosen, Place, location, parts_of, span_of

__all__ = ["sidecar"]

ALIGN = 64
Write = Callable[[Chosen, Sequence[int], Any], None]  # a tensor, where its parts begin, and what takes the bytes


def sidecar(
    model: Model, of: Mapping[str, Chosen], places: Mapping[str, Place], held: str, gone: set[str], write: Write
) -> tuple[list[Piece], dict[str, tuple[int, int]]]:
    """What the sidecar `held` will hold, and where in it each tensor, or part (key, NUL, number), is: start and length.

    The tensors that stay are copied; those that change are written by `write`; what is in `gone` is left out.
    """
    pieces: list[Piece] = []
    spans: dict[tuple[int, int], int] = {}
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    mine = [t for t in model.tensors.values() if t.storage == "external" and location(t) == held]
    mine += [i.tensor for i in of.values() if i.tensor.recipe and places[i.tensor.key].location == held]

    def first(tensor: Tensor) -> int:
        keys = parts_of(tensor) or (tensor.key,)
        return min(span_of(model.tensors[key])[0] for key in keys)

    for tensor in sorted(mine, key=first):
        if tensor.key in gone:
            continue
        item = of.get(tensor.key)
        rest = -end % ALIGN
        if item is None:
            span = span_of(tensor)
            if span in spans:
                offsets[tensor.key] = (spans[span], span[1] - span[0])
                continue
            pieces += [b"\0" * rest, span]
            end += rest
            spans[span], offsets[tensor.key] = end, (end, span[1] - span[0])
            end += span[1] - span[0]
            continue
        at = 0
        starts = []
        for i, size in enumerate(item.form.parts):
            starts.append(at)
            offsets[f"{tensor.key}\0{i}"] = (end + rest + at, size)
            at += size + (-size % ALIGN if i + 1 < len(item.form.parts) else 0)
        pieces += [b"\0" * rest, Blob(at, partial(write, item, starts))]
        end += rest + at
    return pieces, offsets
