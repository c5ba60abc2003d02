"""Weights that several places use: one linear map whose samples are those of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from emp_onnx.calibration.maps import Bias, Site

__all__ = ["together"]


def together(sites: Iterable[Site], /) -> list[Site]:
    """Sites whose weights are the same ones in the same places become one: the lowest, with the others `also`.

    A bias may change where all that read it are these sites.
    """
    groups: list[list[Site]] = []
    having: dict[tuple[str, ...], list[list[Site]]] = {}
    for site in sites:
        for group in having.setdefault(site.keys, []):
            if _alike(group[0], site):
                group.append(site)
                break
        else:
            having[site.keys].append([site])
            groups.append(having[site.keys][-1])
    return [_one(sorted(group, key=lambda site: site.level)) for group in groups]


def _alike(one: Site, other: Site) -> bool:
    """Whether they have the same maps."""
    if len(one.problems) != len(other.problems) or one.step.node.op != other.step.node.op:
        return False
    return all(
        [key for key, _ in a.parts] == [key for key, _ in b.parts]
        and all(p.like(q) for (_, p), (_, q) in zip(a.parts, b.parts, strict=True))
        for a, b in zip(one.problems, other.problems, strict=True)
    )


def _one(group: list[Site]) -> Site:
    first, *others = group
    first.also = others
    for i, uses in enumerate([[site.problems[i] for site in group] for i in range(len(first.problems))]):
        bias = _shared([use.bias for use in uses])
        for site, use in zip(group, uses, strict=True):
            # sums are not shared with other sites where the second solution must see new ones
            site.problems[i] = replace(use, bias=bias, same=None if first.again else use.same)
    return first


def _shared(found: list[Bias | None]) -> Bias | None:
    first = found[0]
    if first is None or first.readers != len(found):
        return None
    for other in found[1:]:
        if other is None or (other.key, other.sign) != (first.key, first.sign):
            return None
        if not np.array_equal(other.index, first.index):
            return None
    return first
