"""From links to groups: what must go together, closed by union-find.

A *region* is a set of axes that hang together, with one way chosen for each folded axis in it. Inside a region the
coordinates that links tie are one *unit*: it stays or goes whole. A unit that meets a wall stays.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.links import Axis, Link, Links

__all__ = ["Group", "find_groups", "parts"]

MOST_WAYS = 24  # regions tried from one axis


@dataclass(eq=False)
class Group:
    """Units of one kind, of which some may go.

    Attributes:
        axes: for every axis of the region, the number of the unit at each coordinate, -1 where the coordinate stays.
        units: how many there are.
        held: coordinates of the region that stay, by reason: counts.
    """

    axes: dict[Axis, NDArray[np.intp]]
    units: int
    held: dict[str, int] = field(default_factory=dict)
    name: str = ""

    def removed(self, units: Any) -> dict[Axis, NDArray[np.bool_]]:
        """Masks, True for what goes, of each axis that loses something when these units go."""
        gone = np.zeros(self.units + 1, bool)
        gone[np.asarray(list(units), dtype=np.intp)] = True
        gone[-1] = False
        masks = {axis: gone[labels] for axis, labels in self.axes.items()}
        return {axis: mask for axis, mask in masks.items() if mask.any()}

    @property
    def key(self) -> Any:
        """What two equal groups have in common: all that goes with their units."""
        return tuple(
            (axis, labels.tobytes())
            for axis, labels in sorted(self.axes.items())
            if axis[0][0] != "#" and (labels >= 0).any()
        )


@dataclass
class _State:
    chosen: dict[Any, Link]
    axes: set[Axis]
    links: set[int]
    queue: deque[Axis]

    def copy(self) -> _State:
        return _State(dict(self.chosen), set(self.axes), set(self.links), deque(self.queue))


def find_groups(links: Links, seeds: list[Axis], constants: set[str]) -> tuple[list[Group], dict[Axis, str]]:
    """The groups that hold some axis of a constant, and for every seed in none of them the reason.

    Args:
        links: of the whole model.
        seeds: axes of constants, in the order in which groups shall be named.
        constants: names of tensors that can be sliced.
    """
    at: dict[Axis, list[int]] = {}
    for number, link in enumerate(links.links):
        for axis, _ in link.ends:
            at.setdefault(axis, []).append(number)
    ways: dict[Any, list[int]] = {}
    for number, link in enumerate(links.links):
        if link.way is not None:
            ways.setdefault(link.way, []).append(number)
    walls: dict[Axis, list[Any]] = {}
    for wall in links.walls:
        walls.setdefault(wall.axis, []).append(wall)
    groups: dict[Any, Group] = {}
    reasons: dict[Axis, str] = {}
    settled: set[Axis] = set()
    for seed in seeds:
        if seed in settled or links.sizes.get(seed, 0) < 2:
            continue
        tried: list[Group] = []
        for axes, used, branched in _regions(seed, links, at, ways):
            group = _group(axes, used, links, walls)
            tried.append(group)
            if not branched:
                settled |= axes
            if group.units and any(axis[0] in constants for axis, labels in group.axes.items() if (labels >= 0).any()):
                groups.setdefault(group.key, group)
        if not any(group.units for group in tried):
            held = [reason for group in tried for reason in group.held]
            reasons[seed] = held[0] if held else "it cannot be traced"
            if len(tried) == 1:
                for axis in tried[0].axes:
                    reasons.setdefault(axis, reasons[seed])
    each: dict[Any, Group] = {}
    for part in (part for group in groups.values() for part in parts(group)):
        each.setdefault(part.key, part)  # two ways through a folded axis may differ in what stays alone
    found = list(each.values())
    for group in found:
        named = [axis for axis in seeds if axis in group.axes]
        own = [axis for axis in named if (group.axes[axis] >= 0).all()] or named
        group.name = f"{own[0][0]}, axis {own[0][1]}" if own else "?"
    return found, reasons


def parts(group: Group) -> list[Group]:
    """A group as several, where its units are not all made and read in the same places.

    Channels of a concatenation come from different operations. Each of these has a number of channels that it computes
    fast, so each is counted by itself.
    """
    met = np.zeros((group.units, len(group.axes)), np.intp)
    for place, labels in enumerate(group.axes.values()):
        met[:, place] = np.bincount(labels[labels >= 0], minlength=group.units)
    kinds, which = np.unique(met, axis=0, return_inverse=True)
    if len(kinds) < 2:
        return [group]
    which = which.reshape(-1)
    out = []
    for kind in sorted(range(len(kinds)), key=lambda k: int(np.argmax(which == k))):
        number = np.full(group.units + 1, -1, np.intp)
        own = np.flatnonzero(which == kind)
        number[own] = np.arange(len(own))
        axes = {axis: number[labels] for axis, labels in group.axes.items()}
        out.append(Group({axis: n for axis, n in axes.items() if (n >= 0).any()}, len(own), dict(group.held)))
    return out


def _regions(
    seed: Axis, links: Links, at: dict[Axis, list[int]], ways: dict[Any, list[int]]
) -> list[tuple[set[Axis], list[int], bool]]:
    """Every closed set of axes around the seed; one for each choice of ways."""
    out: list[tuple[set[Axis], list[int], bool]] = []
    stack, branched = [_State({}, {seed}, set(), deque([seed]))], False
    while stack and len(out) + len(stack) <= MOST_WAYS:
        state = stack.pop()
        alive = True
        while state.queue and alive:
            axis = state.queue.popleft()
            for number in at.get(axis, ()):
                link = links.links[number]
                if number in state.links:
                    continue
                if link.way is None:
                    _enter(state, number, link)
                    continue
                branched = True
                picked = state.chosen.get(link.way)
                if picked is not None and picked is not link:
                    if axis != link.ends[0][0]:  # reached from within, while another way is taken: nothing can go here
                        alive = False
                        break
                    continue
                if picked is None and axis == link.ends[0][0]:  # reached from the folded side: each way is one region
                    options = ways[link.way]
                    for other in options[1:]:
                        copy = state.copy()
                        copy.chosen[link.way] = links.links[other]
                        _enter(copy, other, links.links[other])
                        copy.queue.appendleft(axis)
                        stack.append(copy)
                    number, link = options[0], links.links[options[0]]
                state.chosen[link.way] = link
                _enter(state, number, link)
        if alive:
            out.append((state.axes, sorted(state.links), branched))
    return out


def _enter(state: _State, number: int, link: Link) -> None:
    state.links.add(number)
    for axis, _ in link.ends:
        if axis not in state.axes:
            state.axes.add(axis)
            state.queue.append(axis)


def _group(axes: set[Axis], used: list[int], links: Links, walls: dict[Axis, list[Any]]) -> Group:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    order = sorted(axes)
    start, total = {}, 0
    for axis in order:
        start[axis] = total
        total += links.sizes.get(axis, 0)
    one, other = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for number in used:
        (first, index), *rest = links.links[number].ends
        for axis, more in rest:
            one.append(start[first] + index)
            other.append(start[axis] + more)
    a, b = np.concatenate(one), np.concatenate(other)
    _, label = connected_components(coo_matrix((np.ones(len(a), bool), (a, b)), shape=(total, total)), directed=False)
    held = np.zeros(label.max(initial=0) + 1, bool)
    reasons: dict[str, int] = {}
    for axis in order:
        size = links.sizes.get(axis, 0)
        for wall in walls.get(axis, ()):
            index = np.arange(size) if wall.index is None else wall.index
            held[label[start[axis] + index]] = True
            if index.size:
                reasons[f"{wall.reason} (axis {axis[1]} of '{axis[0]}')"] = int(index.size)
    number_of = np.full(len(held), -1, np.intp)
    # units are numbered by their first coordinate, so that equal models give equal numbers
    first_seen, where = np.unique(label, return_index=True)
    free = [unit for unit in first_seen[np.argsort(where)] if not held[unit]]
    number_of[free] = np.arange(len(free))
    out = {
        axis: number_of[label[start[axis] : start[axis] + links.sizes[axis]]] for axis in order if axis in links.sizes
    }
    return Group(out, len(free), reasons)
