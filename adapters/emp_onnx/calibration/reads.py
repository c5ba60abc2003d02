"""What a site reads in a network that was run: values, constants, states of a cell, and what a loop sees inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.loops import At, Walk, fixed_value
from emp_onnx.calibration.maps import Get, Site
from emp_onnx.calibration.program import Program, Step
from emp_onnx.calibration.recurrent import HIDDEN
from emp_onnx.calibration.runner import Runner, open_session

if TYPE_CHECKING:
    from emp_onnx.calibration.network import Network

__all__ = ["Reads"]

Array = NDArray[Any]


def _joined(run: Runner, name: str, some: list[int]) -> Array | None:
    """A value on some feeds, one after the other along its first axis; None where one of them lacks it."""
    if len(some) == 1:
        return run.values.get(name, some[0])
    found = [run.values.get(name, i) for i in some]
    return None if any(x is None for x in found) else np.concatenate(found)  # type: ignore[arg-type]


class Reads:
    """Values that a site's rows are made from: constants, and the hidden states of a cell, which is run for them."""

    def __init__(self, network: Network, site: Site, changed: Mapping[str, Array] | None) -> None:
        self.network, self.site, self.changed = network, site, changed
        self._session: Any = None
        self._constant: dict[tuple[bool, str], Array] = {}
        self._walk: Walk | None = None

    def at(self, run: Runner, some: list[int]) -> Get:
        """Those of some of the feeds that a network was run on; of cells and of what is around loops, of one."""
        return self._getter(lambda name: _joined(run, name, some), self.network.program)

    def walk(self, outer: Get) -> Iterator[tuple[At, Get]]:
        """Those of each iteration of the loops around the site; `outer` gives what is around these."""
        site = self.site
        if self._walk is None:
            cell = (name for name in site.step.inputs if name)
            guard = (name for name, _ in site.step.guard)
            wanted = {n for n in (*site.reads, site.skip, *guard, *(cell if site.hidden else ())) if n}
            self._walk = Walk(site.path, wanted, self._value, self.network.threads)
        for at, get in self._walk(outer):
            yield at, self._getter(get, site.program)

    def _getter(self, base: Get, program: Program) -> Get:
        """The same with constants, and hidden states; what was given once is kept."""
        seen: dict[str, Array] = {}

        def get(name: str) -> Array | None:
            if name in program.fixed:
                at = (program is self.network.program, name)
                if at not in self._constant:
                    self._constant[at] = fixed_value(program, name, self._value, self.network.threads)
                return self._constant[at]
            if name not in seen:
                found = self._hidden(name, get) if name.startswith(HIDDEN) else base(name)
                if found is None:
                    return None
                seen[name] = found
            return seen[name]

        return get

    def _hidden(self, name: str, get: Get) -> Array:
        program = self.site.program
        reads = {n: get(n) for n in self.site.step.inputs if n and n not in program.fixed}
        given = {n: v for n, v in reads.items() if v is not None}
        if self._session is None:
            self._session = self._cell(name, given)
        return np.asarray(self._session.run([name], given)[0])

    def _value(self, key: str) -> Array:
        return self.network.value(key, self.changed)

    def _cell(self, name: str, reads: Mapping[str, Array]) -> Any:
        step = self.site.step
        proto = type(step.proto)()
        proto.CopyFrom(step.proto)
        del proto.output[:]
        proto.output.append(name)
        alone = Step(proto, step.node, step.inputs, (name,))
        return open_session(self.site.program, [alone], reads, [name], self._value, self.network.threads)
