"""In which of onnxruntime's passes each part of a packed tensor is unpacked, and the nodes and the constant for that.

Memory of one pass is freed when it ends. Stage 0 is a constant of the file. The rule that removes additions of 0 runs
before constants are folded, so stage 1 is known in the first pass, and stage n in pass n: stages are counted from 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from emp_onnx.files import emit
from emp_onnx.files.functions import DOMAIN, PARTS, STAGE
from emp_onnx.files.graph import Node
from emp_onnx.files.model_io import Model
from emp_onnx.files.wire import LENGTH, Edit, Wire
from emp_onnx.packing.places import Chosen, Place

__all__ = ["count", "stage_name", "stage_nodes", "stages_of", "staging"]

STAGES = 9  # passes that onnxruntime makes, less one: unpacking is spread over them
SHRINK = 0.9  # what each stage does of the one before: the more is unpacked, the less room there is
STAGED = 1 << 25  # dense bytes from which it is spread at all


def stages_of(chosen: Sequence[Chosen]) -> dict[str, list[int]]:
    """For each packed tensor the stages in which its parts are unpacked."""
    packed = [item for item in chosen if item.form.kind not in ("dense", "coo")]
    total = sum(map(_dense_bytes, packed))
    ends = [*accumulate(SHRINK**i for i in range(STAGES))]
    ends = [end / ends[-1] for end in ends]
    done, out = 0, dict[str, list[int]]()
    for item in packed:
        many, size = PARTS.get(item.form.kind, 1), _dense_bytes(item)
        steps = [done + size * i // max(many, 1) for i in range(many)]
        out[item.tensor.key] = [1 + bisect_right(ends, step / total) if total >= STAGED else 0 for step in steps]
        done += size
    return out


def count(model: Model, stages: Mapping[str, list[int]]) -> int:
    """How many stages there are; tensors that stay packed keep theirs."""
    new = max((stage for some in stages.values() for stage in some), default=0)
    return 1 + max(new, sum(is_stage(node) for node in model.graph.nodes))


def staging(model: Model, wire: Wire, places: Mapping[str, Place], needed: bool) -> list[Edit]:
    """The first stage's initializer, anew; what was there before goes."""
    edits = []
    graph = model.graph
    tensor = graph.tensors.get(stage_name(0))
    if tensor is not None:
        edits += [Edit(*places[tensor.key].fields[0], b"")]
    stages = {span[0] for node, span in zip(graph.nodes, model.contents.nodes, strict=True) if is_stage(node)}
    for number, kind, at, tag, end in wire.fields(*graph.span):
        if kind == LENGTH and number == 1 and at in stages:
            edits.append(Edit(tag, end, b""))
    if needed:
        tag = next(wire.fields(*graph.span))[3]
        body = emit.tensor(stage_name(0), "float32", (), np.zeros((), np.float32).tobytes())
        edits.append(Edit(tag, tag, emit.field(5, body), insert=True))
    return edits


def stage_nodes(count: int) -> list[bytes]:
    """The nodes that make all stages after the first."""
    return [emit.node(STAGE, [stage_name(i)], [stage_name(i + 1)], domain=DOMAIN) for i in range(count - 1)]


def stage_name(stage: int) -> str:
    """The value that is 0.0, and known to be from this stage on."""
    return f"{DOMAIN}/stage {stage}"


def is_stage(node: Node) -> bool:
    """Whether a node only delays."""
    return (node.domain, node.op) == (DOMAIN, STAGE)


def _dense_bytes(item: Chosen) -> int:
    """Bytes of a tensor as it is unpacked."""
    return item.tensor.size * item.found.fill.dtype.itemsize
