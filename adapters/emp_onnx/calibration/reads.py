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
from emp_onnx.calibration.runner import Runner
from emp_onnx.calibration.sessions import open_session

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
        return _Given(self, lambda name: _joined(run, name, some), self.network.program)

    def walk(self, outer: Get) -> Iterator[tuple[At, Get]]:
        """Those of each iteration of the loops around the site; `outer` gives what is around these."""
        site = self.site
        if self._walk is None:
            cell = (name for name in site.step.inputs if name)
            guard = (name for name, _ in site.step.guard)
            wanted = {n for n in (*site.reads, site.skip, *guard, *(cell if site.hidden else ())) if n}
            self._walk = Walk(site.path, wanted, self._value, self.network.threads)
        for at, get in self._walk(outer):
            yield at, _Given(self, get, site.program)

    def constant(self, program: Program, name: str) -> Array:
        """A value that does not depend on feeds."""
        at = (program is self.network.program, name)
        if at not in self._constant:
            self._constant[at] = fixed_value(program, name, self._value, self.network.threads)
        return self._constant[at]

    def hidden(self, name: str, get: Get) -> Array:
        """What a cell says at every step: it is run for that, on the inputs that `get` gives."""
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


class _Given:
    """Values by name, with constants and hidden states; what was given once is kept, as long as this lives.

    A function that asks itself would be a circle, and what it keeps would wait for the search for garbage.
    """

    def __init__(self, reads: Reads, base: Get, program: Program) -> None:
        self._reads, self._base, self._program = reads, base, program
        self._seen: dict[str, Array] = {}

    def __call__(self, name: str) -> Array | None:
        if name in self._program.fixed:
            return self._reads.constant(self._program, name)
        if name not in self._seen:
            found = self._reads.hidden(name, self) if name.startswith(HIDDEN) else self._base(name)
            if found is None:
                return None
            self._seen[name] = found
        return self._seen[name]
