"""Damaged and hostile files: whatever is done to a file, `emp prune` answers with a result or with one sentence.

    python -m tests.fuzz [--mutants 20000] [--seed 0] [--jobs 1] [--keep FOLDER]

Mutants are made of small files: those of `../shared/corpus` where that is there, onnx's own test models, and models
generated here, with bytes changed at random or fields changed to what could hurt. Each is pruned by a worker process of
its own kind, which is watched: exit code 0, 1, 2 or 3; one line on standard error when it is not 0; nothing left behind
then; a result that verifies when it is 0; at most a few seconds, and at most 1 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.benchmarks.corpus import corpora
from tests.onnx.builders import BUILDERS
from tests.onnx.places import FLOAT_OPS, HOMES, QUANTISED_OPS, build

ROOT = Path(__file__).resolve().parents[1]
LARGEST, PATIENCE, PAUSE, MEMORY = 60_000, 60.0, 0.01, 1 << 30
HUGE = (-1, 0, 1, 2**31 - 1, 2**31, 2**62, -(2**63), 2**63 - 1)
NAMES = ("", "w", "x", "a\nb", "\x1b[2J", "../../etc/passwd", "/etc/passwd", "é" * 300, "then_branch of If 'choice'/w")


@dataclass
class Result:
    """Counts by exit code, and every mutant on which something was wrong, with what.

    `unverified` are those that exit code 1 was given for: right where a damaged model computes other things each time,
    or infinities where there were none, and worth a look.
    """

    codes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    unverified: list[int] = field(default_factory=list)


def parents() -> list[bytes]:
    """The files that mutants are made of."""
    rng = np.random.default_rng(0)
    found = [make(rng).model.SerializeToString() for _, make, _ in BUILDERS]
    for i, home in enumerate(HOMES):
        op = FLOAT_OPS[i % len(FLOAT_OPS)]
        found.append(build(op, home, np.float32, [("Transpose", i)], rng, "one").model.SerializeToString())
        quantised = build(QUANTISED_OPS[i % len(QUANTISED_OPS)], home, np.uint8, [], rng, "axis")
        found.append(quantised.model.SerializeToString())
    for files in corpora().values():
        found += [path.read_bytes() for path in files if path.stat().st_size <= LARGEST]
    found = [data for data in found if len(data) > 10]
    # most files test a single operation without weights: those that may have some count three times
    return found + 2 * [data for data in found if any(op in data for op in (b"Conv", b"MatMul", b"Gemm", b"LSTM"))]


def mutant(data: bytes, rng: random.Random) -> bytes:
    """One mutant of a file."""
    if rng.random() < 0.5:
        with contextlib.suppress(Exception):  # a parent that does not parse is mutated as bytes
            return fields(onnx.ModelProto.FromString(data), rng).SerializeToString()
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(out))
        match rng.randrange(6):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2 if len(out) > 20:
                del out[at : at + rng.randrange(1, 9)]
            case 3 if len(out) > 20:
                del out[max(at, 10) :]
            case 4:
                end = at + rng.randrange(1, 64)
                out[at:at] = out[at:end]
            case _:
                out[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(out)


def fields(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """A model with some fields changed to what could hurt."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        tensors, nodes = list(_tensors(proto.graph)), list(proto.graph.node)
        changes: list[Callable[[], Any]] = []
        if tensors:
            t, other = rng.choice(tensors), rng.choice(tensors)
            changes += [
                lambda t=t: t.dims.append(rng.choice(HUGE)),
                lambda t=t: t.dims.__setitem__(0, rng.choice(HUGE)),
                lambda t=t: t.dims.pop(),
                lambda t=t: setattr(t, "data_type", rng.randrange(0, 30)),
                lambda t=t: setattr(t, "raw_data", t.raw_data[: rng.randrange(1 + len(t.raw_data))]),
                lambda t=t: setattr(t, "raw_data", rng.randbytes(len(t.raw_data))),
                lambda t=t: setattr(t, "name", rng.choice(NAMES)),
                lambda t=t, other=other: t.CopyFrom(other),
                lambda t=t: _external(t, rng),
                lambda t=t: t.segment.CopyFrom(onnx.TensorProto.Segment(begin=0, end=rng.choice(HUGE))),
            ]
        if nodes:
            n, other_node = rng.choice(nodes), rng.choice(nodes)
            changes += [
                lambda n=n: n.input.__setitem__(0, rng.choice([*NAMES, *n.output])),
                lambda n=n: n.output.__setitem__(0, rng.choice([*NAMES, *n.input])),
                lambda n=n: setattr(n, "op_type", rng.choice(["Transpose", "Identity", "Reshape", "DequantizeLinear"])),
                lambda n=n, m=other_node: n.CopyFrom(m),
                lambda n=n: proto.graph.node.append(n),
                lambda n=n: n.attribute.pop(),
                lambda n=n: [setattr(a, "i", rng.choice(HUGE)) for a in n.attribute if a.type == 2],
                lambda n=n: [a.ints.append(rng.choice(HUGE)) for a in n.attribute if a.type == 7],
                lambda n=n: n.attribute.append(
                    onnx.helper.make_attribute(rng.choice(["axis", "to", "group"]), rng.choice(HUGE))
                ),
                lambda n=n: setattr(n, "domain", rng.choice(["", "com.microsoft", "local"])),
            ]
        with contextlib.suppress(Exception):  # a change that this file has no room for
            rng.choice(changes)()
    return proto


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _external(tensor: onnx.TensorProto, rng: random.Random) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    places = ("side.bin", "../side.bin", "/etc/hostname", ".", "", "in.onnx", "link.bin", "missing.bin")
    for key, text in (
        ("location", rng.choice(places)),
        ("offset", str(rng.choice((0, 4, 8, *HUGE)))),
        ("length", str(rng.choice((0, 4, 96, *HUGE)))),
    ):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=text)


def attempt(data: bytes, folder: Path, scope: str) -> tuple[int, str]:
    """Prune one mutant in this process; the exit code, and what was wrong."""
    from emp_onnx.cli import main

    source, out = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(data)
    before = {path.name for path in folder.iterdir()}
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        code = main(["prune", str(source), str(out), "--quiet", "--threads", "1", "--scope", scope])
    lines, after = said.getvalue().splitlines(), {path.name for path in folder.iterdir()}
    wrong = ""
    if code not in (0, 1, 2, 3):
        wrong = f"exit code {code}"
    elif code and (len(lines) != 1 or not lines[0].startswith("emp: ")):
        wrong = f"exit code {code} with {lines}"
    elif code and after != before:
        wrong = f"exit code {code} and left {after - before}"
    elif not code:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            if main(["verify", str(out), "--quiet"]):
                wrong = f"the result does not verify: {said.getvalue()}"
        for name in after - before:
            (folder / name).unlink()
    if source.read_bytes() != data:
        wrong = "the input was changed"
    return code, wrong


def worker(seed: int, first: int, last: int) -> None:
    """Mutants `first` to `last`, one line before and one after each, for whoever watches."""
    import resource

    seeds = parents()
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        (Path(name) / "side.bin").write_bytes(bytes(96))
        (folder / "side.bin").write_bytes(bytes(range(96)))
        (folder / "link.bin").symlink_to("/etc/hostname")
        os.chdir(folder)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        for i in range(first, last):
            rng = random.Random(f"{seed} {i}")
            data = mutant(rng.choice(seeds), rng)
            print("start", i, flush=True)
            try:
                code, wrong = attempt(data, folder, rng.choice(["tensor", "row", "model"]))
            except Exception as error:
                code, wrong = -1, f"{type(error).__name__}: {error}"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            if peak > start + MEMORY and not wrong:
                wrong = f"memory rose to {peak >> 20} MB"
                start = peak
            print("done", i, code, wrong.replace("\n", " "), flush=True)


def fuzz(mutants: int, seed: int = 0, jobs: int = 1, say: Callable[[str], None] = lambda line: None) -> Result:
    """Try so many mutants, in so many workers beside one another; `say` is told every fault when it is seen."""
    edges = [mutants * job // jobs for job in range(jobs + 1)]
    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(lambda first, last: _span(seed, first, last, say), edges[:-1], edges[1:]))
    total = Result()
    for part in parts:
        total.codes += part.codes
        total.faults += part.faults
        total.unverified += part.unverified
    return total


def _span(seed: int, first: int, last: int, say: Callable[[str], None]) -> Result:
    """Mutants `first` to `last`; a worker that dies or hangs is counted, and another goes on after that mutant."""
    result, at = Result(), first
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])

    def fault(text: str) -> None:
        result.faults.append(text)
        say(text)

    while at < last:
        command = [sys.executable, "-m", "tests.fuzz", "--worker", str(seed), str(at), str(last)]
        with tempfile.TemporaryFile() as said, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, bufsize=0
        ) as process:  # fmt: skip
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            # idle rounds, not the clock: whoever freezes both for a while has not made the worker hang
            current, pending, idle = at - 1, b"", 0
            while True:
                piece = process.stdout.read()
                if piece:
                    idle, (*lines, pending) = 0, (pending + piece).split(b"\n")
                    for line in lines:
                        kind, number, *rest = line.decode(errors="replace").split(" ", 3)
                        current = int(number)
                        if kind == "done":
                            at = current + 1
                            result.codes[rest[0]] += 1
                            if rest[0] == "1":
                                result.unverified.append(current)
                            if len(rest) > 1 and rest[1]:
                                fault(f"mutant {current}: {rest[1]}")
                elif process.poll() is not None and piece == b"":
                    break
                elif idle * PAUSE > PATIENCE:
                    process.kill()
                else:
                    idle += 1
                    time.sleep(PAUSE)
            if at < last:
                said.seek(0)
                tail = said.read()[-300:].decode(errors="replace").replace("\n", " ")
                how = "hung" if idle * PAUSE > PATIENCE else f"ended with {process.returncode}"
                fault(f"mutant {current}: the process {how} {tail}")
                result.codes["crash"] += 1
                if current < at:
                    raise RuntimeError(f"the worker cannot start: {tail}")
                at = current + 1
    return result


def main(argv: list[str] | None = None) -> int:
    """Fuzz and print; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="workers beside one another")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the mutants with faults there")
    parser.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        worker(*options.worker)
        return 0
    start = time.perf_counter()
    result = fuzz(options.mutants, options.seed, options.jobs, lambda line: print(line, flush=True))
    print(f"{options.mutants:,} mutants in {time.perf_counter() - start:.0f} s; exit codes {dict(result.codes)}")
    print(f"faults: {len(result.faults)}")
    print(f"exit code 1: {result.unverified}")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        seeds = parents()
        for number in [*result.unverified, *(int(fault.split()[1].rstrip(":")) for fault in result.faults)]:
            rng = random.Random(f"{options.seed} {number}")
            (options.keep / f"{number}.onnx").write_bytes(mutant(rng.choice(seeds), rng))
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
