"""What becomes of other people's ONNX files: each is pruned and verified, or refused with the reason; counts.

    python -m tests.benchmarks.corpus [--write docs/corpus.md]

The files of `../shared/corpus` and `../shared/models` are no part of this repository; the others, the models of onnx's
own backend tests and those of its tests of single operations, come with the installed onnx. A file counts as failed
when an error is none of ours, when a result is not verified, when a model that ran before does not run after, or when
outputs moved and nothing was pruned.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import emp_onnx
from tests.benchmarks._report import machine, table, write

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
PRUNED, KEPT, REFUSED, NONE, ERROR, FAILED = (
    "pruned and verified", "verified, nothing removed", "refused", "no weights", "not readable", "FAILED",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one file: the kind, the reason where it was not pruned, and whether onnxruntime ran it."""

    kind: str
    reason: str = ""
    ran: bool = False
    removed: int = 0
    weights: int = 0


def operations(folder: Path) -> list[Path]:
    """The models of onnx's tests of single operations, which it makes when asked, as files in a folder."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests overflow on purpose
        cases = collect_testcases(None)
    files = []
    for case in cases:
        if case.model is not None:
            files.append(folder / f"{case.name}.onnx")
            files[-1].write_bytes(case.model.SerializeToString())
    return sorted(files)


def corpora() -> dict[str, list[Path]]:
    """The files by corpus; one that is not there is empty."""
    import onnx

    backend = Path(onnx.__file__).parent / "backend" / "test" / "data"
    return {
        "corpus": sorted((SHARED / "corpus").glob("*.onnx")),
        "models": sorted((SHARED / "models").glob("*.onnx")),
        "onnx backend tests": sorted(backend.rglob("*.onnx")),
    }


def outcome(path: Path, folder: Path, scope: str = "tensor") -> Outcome:
    """Prune one file, and say what became of it."""
    out = folder / "out.onnx"
    out.unlink(missing_ok=True)
    try:
        report = emp_onnx.prune(path, out, scope=scope, gzip=False, threads=1)
    except emp_onnx.VerifyError as error:
        return Outcome(FAILED, str(error))
    except emp_onnx.ModelError as error:
        return _unpruned(str(error), out)
    except Exception as error:  # anything else is a fault of ours, whatever it is
        return Outcome(FAILED, f"{type(error).__name__}: {error}")
    seen, total = report.verification.behaviour, report.plan.total
    if not emp_onnx.verify(out).ok:
        return Outcome(FAILED, "the written file does not verify")
    entries = report.plan.entries
    if total.k == total.n and seen is not None and any(o.max_abs for o in seen.outputs):
        return Outcome(FAILED, "outputs moved though nothing was removed")
    kind = KEPT if total.k == total.n else PRUNED
    return Outcome(kind, report.verification.not_run, seen is not None, total.n - total.k, len(entries))


def _unpruned(reason: str, out: Path) -> Outcome:
    if out.exists():
        return Outcome(FAILED, f"an output was left behind: {reason}")
    if "no operation that is known here has a constant weight" in reason:
        kind, reason = NONE, ""
    elif "can be pruned:" in reason:
        kind, reason = REFUSED, reason.split("can be pruned: ")[-1]
    else:
        kind = ERROR
    return Outcome(kind, reason)


def main(argv: list[str] | None = None) -> int:
    """Go through all files, print the tables, and write them if asked; 1 if any file failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.corpus", description=__doc__.split("\n")[0])
    parser.add_argument("--write", metavar="FILE", type=Path, help="also write the tables there")
    parser.add_argument("--scope", default="tensor", choices=("tensor", "row", "model"))
    options = parser.parse_args(argv)
    start, rows, reasons, failed = time.perf_counter(), [], Counter[str](), []
    kinds = (PRUNED, KEPT, REFUSED, NONE, ERROR, FAILED)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as made:
        for name, files in {**corpora(), "onnx operator tests": operations(Path(made))}.items():
            found = [(path, outcome(path, Path(folder), options.scope)) for path in files]
            counts = Counter(o.kind for _, o in found)
            ran = sum(o.ran for _, o in found if o.kind in (PRUNED, KEPT))
            rows.append([name, f"{len(files):,}", *(f"{counts[kind]:,}" for kind in kinds), f"{ran:,}"])
            for path, o in found:
                if o.kind in (REFUSED, ERROR):
                    reasons[f"{o.kind}: {_general(o.reason)}"] += 1
                if o.kind == FAILED:
                    failed.append(f"{path}: {o.reason}")
    if not any(int(row[1].replace(",", "")) for row in rows[:2]):
        print(f"corpus: {SHARED} is not there; only onnx's own models were tried", file=sys.stderr)
    first = table(["files from", "files", *kinds, "of the verified, compared in onnxruntime"], rows)
    second = table(["reason", "files"], [[reason, str(count)] for reason, count in reasons.most_common()])
    foot = f"Scope {options.scope}. {machine('onnx', 'onnxruntime', 'numpy')}"
    text = f"{first}\n\nWhy files were not pruned, by the first reason:\n\n{second}\n\n{foot}"
    print(text)
    print(*failed, f"{time.perf_counter() - start:.0f} s", sep="\n", file=sys.stderr)
    if options.write:
        write(options.write, "corpus", text)
    return 1 if failed else 0


def _general(reason: str) -> str:
    """A reason without names and numbers of its own."""
    reason = reason.split(";")[0]
    reason = re.sub(r"^\d+ × ", "", reason)
    reason = re.sub(r"'[^']*'", "…", reason)
    return re.sub(r"\([\d, ]+\)|\d+ bytes|got \d+", "…", reason).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
