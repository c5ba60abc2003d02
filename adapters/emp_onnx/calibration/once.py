"""The samples of all sites from one pass of the feeds through the dense network.

The network runs whole, on a few feeds at a time, and what they gave is summed before the next ones come: so there is
one session, and activations of a few feeds are all that is ever in memory.
"""

from __future__ import annotations

from emp_onnx.calibration.chunks import chunks
from emp_onnx.calibration.maps import Site
from emp_onnx.calibration.network import Network, merged
from emp_onnx.calibration.own import Found
from emp_onnx.calibration.runner import Kept, Runner
from emp_onnx.calibration.taking import NotPooledError, Taking, Totals
from emp_onnx.runtime.memory import give_back

__all__ = ["once"]

ROOM, MOST = 1 << 22, 16  # bytes of activations that are held together, as far as one feed tells; feeds at most
TIDY = 64  # feeds after which memory is given back where activations are large: it takes a tenth of a second


def once(network: Network, /, enough: tuple[int, int] = Network.enough) -> dict[int, Found]:
    """The moments of every problem that a feed reaches, by its id: of the dense network's inputs.

    Args:
        network: with its feeds.
        enough: see `Network`.

    Raises:
        ModelError: NaN or infinities, with the node's name.
    """
    network = network.on(network.feeds)
    network.enough = enough
    try:
        return _pass(network, True)
    except NotPooledError:  # some feeds say otherwise than the first ones did
        return _pass(network, False)


def _pass(network: Network, positions: bool) -> dict[int, Found]:
    program = network.program
    wanted = {name for site in network.sites for use in site.uses for name in use.needs}
    cut, kept = program.whole(lambda: chunks(program, 0, wanted)), Kept()
    takings: list[tuple[Site, list[Taking]]] = []
    shared: dict[object, list[Totals]] = {}
    start, count = 0, 1
    while start < len(network.feeds):
        run = Runner(program, cut, network.value, threads=network.threads, kept=kept)
        run.start(network.feeds[start : start + count])
        run.level(0, wanted)
        if not start:
            for site in network.sites:
                uses = [Taking(network, use, None, lambda feed: 0, 1, False) for use in site.uses]
                takings.append((site, uses))
                for taking in uses:
                    if positions:
                        taking.look(run, None, len(network.feeds))
                    taking.prepare(None if site.also else shared, own=True)
        for _, uses in takings:
            for taking in uses:
                taking.take(run, first=start)
        room = max(1, min(MOST, ROOM * count // max(run.values.held, 1)))
        if count < MOST and start // TIDY < (start + count) // TIDY:
            del run  # activations are large: the pages that they leave between them would not be used again
            give_back()
        start, count = start + count, room
    return {
        id(problem): sums
        for site, uses in takings
        for problem, (sums,) in zip(site.problems, merged([taking.moments() for taking in uses]), strict=True)
        if sums.count
    }
