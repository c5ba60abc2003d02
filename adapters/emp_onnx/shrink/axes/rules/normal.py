"""Normalisations: a scale and a shift per channel, and statistics over some axes.

Where statistics are constants (BatchNorm) or taken over space only (InstanceNorm), channels go side by side. Where
they are taken over the channels (LayerNorm, RMSNorm), each channel is in every result: these axes stay. GroupNorm
loses whole groups.
"""

from __future__ import annotations

import numpy as np

from emp_onnx.shrink.axes.links import Relation, Unfit, rule, whole
from emp_onnx.shrink.axes.rules.elementwise import align

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "over_channels", "skip_layer_norm"]


@rule("BatchNormalization")
def batch_norm(relation: Relation) -> None:
    """y[n, c, …] = scale[c]·(x[n, c, …] − mean[c]) / √(var[c] + ε) + shift[c]."""
    op = relation.op
    if whole(op, "training_mode", 0) or len([o for o in op.outputs if o]) > 1:
        raise Unfit("it is in training mode")
    align(relation, op.inputs[:1], op.outputs[0])
    channel = 1 if relation.rank(op.inputs[0]) > 1 else 0
    relation.tie((op.outputs[0], channel, None), *((name, 0, None) for name in op.inputs[1:5]))


@rule("InstanceNormalization")
def instance_norm(relation: Relation) -> None:
    """y[n, c, …] = scale[c]·(x[n, c, …] − mean over …) / std over … + shift[c]."""
    op = relation.op
    relation.tie((op.inputs[0], 0, None), (op.outputs[0], 0, None))
    relation.tie((op.inputs[0], 1, None), (op.outputs[0], 1, None), *((name, 0, None) for name in op.inputs[1:3]))


@rule("GroupNormalization")
def group_norm(relation: Relation) -> None:
    """Statistics over the c // (C/G)-th of G groups: whole groups go. Scales are per group before opset 21, then per
    channel."""
    op = relation.op
    x, y, groups = op.inputs[0], op.outputs[0], whole(op, "num_groups", 1)
    channels = relation.size(x, 1)
    if channels is None:
        raise Unfit("its channels change with the input")
    g = relation.virtual("groups", groups)
    relation.tie((x, 0, None), (y, 0, None))
    relation.tie((x, 1, None), (y, 1, None))
    relation.tie((x, 1, None), (g, 0, np.arange(channels) // (channels // groups)))
    for name in op.inputs[1:3]:
        relation.tie((name, 0, None), (g, 0, None) if relation.size(name, 0) == groups else (x, 1, None))


@rule(
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "com.microsoft.SimplifiedLayerNormalization",
)
def layer_norm(relation: Relation) -> None:
    """Statistics over all axes from `axis` on, which stay; the axes before go side by side."""
    op = relation.op
    rank = relation.rank(op.inputs[0])
    axis = int(relation.attribute("axis", -1)) % rank
    for a in range(axis):
        relation.tie((op.inputs[0], a, None), (op.outputs[0], a, None))
        for out in op.outputs[1:]:
            if out:
                relation.tie((op.inputs[0], a, None), (out, a, None))


@rule(
    "com.microsoft.SkipLayerNormalization",
    "com.microsoft.SkipSimplifiedLayerNormalization",
    "com.microsoft.EmbedLayerNormalization",
)
def skip_layer_norm(relation: Relation) -> None:
    """Statistics over the last axis, which stays; nothing else is cut here."""
    raise Unfit("it normalises over the channels")


@rule("LpNormalization", "LRN", "MeanVarianceNormalization")
def over_channels(relation: Relation) -> None:
    """Statistics over the channels: they stay."""
    raise Unfit("it normalises over the channels")
