"""Longer sequences than the feeds have, where these are too short to show what a recurrent layer remembers.

After one or two steps a state is nearly nothing, and statistics of it mean nothing; the model in use may take fifty.
Where the feeds differ in the length of an axis, which makes it one of a sequence, and none is long, feeds are also
joined end to end along it. They are inputs that the model could be given, made of nothing but the feeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.trace import Runner, open_axes

__all__ = ["lengthened"]

LONG = 16  # steps: from here on feeds are long enough by themselves
APART = 4  # a joined feed begins at every so many feeds


def lengthened(runner: Runner, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    """Feeds joined end to end; none where there is no short sequence, or where the model does not run on them."""
    short = []
    for where in open_axes(runner.inputs).values():
        sizes = {np.shape(feed[name])[axis] for feed in feeds for name, axis in where if name in feed}
        if len(sizes) > 1 and max(sizes) < LONG:
            short.append(where)
    if not short:
        return []
    out = []
    for start in range(0, len(feeds), APART):
        joined = {name: np.asarray(value) for name, value in feeds[start].items()}
        for where in short:
            name, axis = where[0]
            count = 1
            while (
                start + count < len(feeds)
                and sum(np.shape(feed[name])[axis] for feed in feeds[start : start + count]) < LONG
            ):
                count += 1
            for name, axis in where:
                joined[name] = np.concatenate([np.asarray(f[name]) for f in feeds[start : start + count]], axis)
        try:
            runner(joined)
        except Exception:  # it does not run so: then there are only the feeds
            return []
        out.append(joined)
    return out
