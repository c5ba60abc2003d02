"""The command line: every error a sentence with its exit code, nothing written on failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import emp_onnx
from emp_onnx.cli import main
from tests.onnx.builders import gemm, model, tensor, two_layers, value, write

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(two_layers(np.random.default_rng(0), 6).model, tmp_path / "m.onnx")
    half = gemm(np.random.default_rng(0))
    half.model.graph.initializer[0].CopyFrom(tensor("w", np.ones((5, 3), np.int32)))
    write(half.model, tmp_path / "half.onnx")
    nan = gemm(np.random.default_rng(0))
    nan.model.graph.initializer[0].CopyFrom(tensor("w", half.weights["w"] * np.nan))
    write(nan.model, tmp_path / "nan.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:-9])
    (tmp_path / "plan.json").write_text(emp_onnx.plan(emp_onnx.load(tmp_path / "m.onnx")).to_json())
    (tmp_path / "other.json").write_text(emp_onnx.plan(emp_onnx.Model(gemm(np.random.default_rng(3)).model)).to_json())
    np.savez(tmp_path / "good.npz", x=np.ones((3, 1, 4), np.float32))
    np.savez(tmp_path / "double.npz", x=np.ones((3, 1, 4)))
    (tmp_path / "sub").mkdir()
    os.symlink("m.onnx", tmp_path / "soft.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


TABLE: list[tuple[str, int, str]] = [
    ("", 2, "emp: the following arguments are required: COMMAND"),
    ("fly", 2, "invalid choice: 'fly'"),
    ("prune", 2, "required: IN.onnx"),
    ("prune m.onnx a b", 2, "unrecognized arguments: b"),
    ("prune m.onnx --be 1", 2, "unrecognized arguments: --be"),
    ("prune no.onnx", 3, "model must be an ONNX file, got 'no.onnx', which does not exist"),
    ("prune sub", 3, "model must be an ONNX file, got the directory 'sub'"),
    ("prune empty.onnx", 3, "which is empty"),
    ("prune text.onnx", 3, "which is damaged or something else"),
    ("prune cut.onnx", 3, "which is damaged or something else"),
    ("plan cut.onnx", 3, "which is damaged or something else"),
    ("verify cut.onnx", 3, "which is damaged or something else"),
    ("prune half.onnx", 3, "can be pruned: 1 × int32 weights are not pruned"),
    ("plan half.onnx", 3, "can be pruned: 1 × int32 weights are not pruned"),
    ("prune nan.onnx", 3, "weight 'w' must hold finite numbers, got 15 that are NaN"),
    ("prune m.onnx --beta -1", 2, "--beta must be > 0, got -1.0"),
    ("prune m.onnx --beta nan", 2, "--beta must be > 0, got nan"),
    ("prune m.onnx --beta inf", 2, "--beta must be > 0, got inf"),
    ("prune m.onnx --beta much", 2, "--beta must be a number > 0, got 'much'"),
    ("prune m.onnx --order -1", 2, "--order must be ≥ 0, got -1.0"),
    ("prune m.onnx --sparsity 1", 2, "--sparsity must be ≥ 0 and < 1, got 1.0"),
    ("prune m.onnx --sparsity .5 --beta 2", 2, "--beta must come without --sparsity"),
    ("prune m.onnx --sparsity .5 --order 1", 2, "--order must come without --sparsity"),
    ("prune m.onnx --scope galaxy", 2, "invalid choice: 'galaxy'"),
    ("prune m.onnx --include zz", 2, "--include must match a weight, got 'zz'; there are: 'a', 'b'"),
    ("plan m.onnx --exclude zz", 2, "--exclude must match a weight, got 'zz'"),
    ("prune m.onnx --exclude *", 2, "must leave something to prune"),
    ("prune m.onnx --min-size -1", 2, "--min-size must be ≥ 0, got -1"),
    ("prune m.onnx --min-size x", 2, "--min-size must be a whole number ≥ 0, got 'x'"),
    ("prune m.onnx --threads 0", 2, "--threads must be ≥ 1, got 0"),
    ("prune m.onnx --seed 1.5", 2, "--seed must be a whole number ≥ 0, got '1.5'"),
    ("prune m.onnx --feeds no.npz", 2, "--feeds must be a folder or an .npz file, got 'no.npz', which does not exist"),
    ("prune m.onnx --feeds sub", 2, "which holds none"),
    ("prune m.onnx --feeds double.npz", 2, "feed 0 must hold 'x' as float32, got float64"),
    ("prune m.onnx --feeds m.onnx", 2, "--feeds must be .npz files"),
    ("prune m.onnx m.onnx", 2, "OUT must not be the input 'm.onnx'; to replace that, give --in-place"),
    ("prune m.onnx ./sub/../m.onnx", 2, "OUT must not be the input"),
    ("prune m.onnx soft.onnx", 2, "OUT must not be the input"),
    ("prune m.onnx sub", 2, "OUT must be a file name, got the directory 'sub'"),
    ("prune m.onnx no/out.onnx", 2, "OUT must be in a directory that exists"),
    ("prune m.onnx out.onnx --in-place", 2, "--in-place must come without OUT, got 'out.onnx'"),
    ("prune m.onnx plan.json --plan plan.json", 2, "OUT must not be a file that is read"),
    ("prune m.onnx --plan no.json", 2, "--plan must be a file that can be read, got 'no.json'"),
    ("prune m.onnx --plan text.onnx", 2, "--plan must be JSON"),
    ("prune m.onnx --plan other.json", 2, "--plan must be made for this model, got one made for another"),
    ("prune m.onnx --plan plan.json --beta 1", 2, "--plan must come without --beta"),
    ("prune m.onnx --plan plan.json --exclude a", 2, "--plan must come without --exclude"),
    ("prune m.onnx --plan plan.json --min-size 3", 2, "--plan must come without --min-size"),
    ("prune m.onnx --target checker-strict", 2, "--target must come with --pack, got --target checker-strict without"),
    ("prune m.onnx --target onnxruntime", 2, "--target must come with --pack"),
    ("prune m.onnx --target checker-strict --refit --feeds good.npz", 2, "--target must come with --pack"),
    ("sweep m.onnx --criterion gradient --feeds no.npz", 2, "invalid choice: 'gradient'"),
    ("plan m.onnx -o m.onnx", 2, "-o must not be a file of the model"),
    ("plan m.onnx -o no/plan.json", 2, "-o must be in a directory that exists"),
    ("verify m.onnx", 1, ""),
    ("verify m.onnx m.onnx", 1, ""),
    ("verify m.onnx --quiet", 1, "verification failed: model must carry a certificate"),
    ("verify m.onnx --feeds good.npz", 2, "--feeds must come with ORIGINAL"),
    ("verify no.onnx", 3, "which does not exist"),
    ("verify m.onnx no.onnx", 3, "which does not exist"),
]


@pytest.mark.parametrize(("line", "code", "sentence"), TABLE, ids=[line or "nothing" for line, _, _ in TABLE])
def test_errors(folder: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, sentence: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    assert sentence in err
    assert "Traceback" not in out + err
    assert err == "" or (err.startswith("emp: ") and err.count("\n") == 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


GOOD = [
    "plan m.onnx",
    "plan m.onnx --scope row --beta 0.5 --order 1 --include a --min-size 2 --threads 1",
    "prune m.onnx out.onnx",
    "prune m.onnx out.onnx --scope model --feeds good.npz",
    "prune m.onnx out.onnx --sparsity 0.5 --seed 3",
    "prune m.onnx out.onnx --plan plan.json",
    "prune m.onnx out.onnx --pack auto --target checker-strict",
    "prune m.onnx --in-place --exclude first",
    "prune soft.onnx out.onnx",
]


@pytest.mark.parametrize("line", GOOD)
def test_what_works(folder: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "retained" in out
    assert main([*line.split(), "--json"]) == 0
    out, err = capsys.readouterr()
    assert isinstance(json.loads(out), dict)
    assert err == ""
    assert main([*line.split(), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_plan_saved_audited_applied_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "m.onnx", "-o", "saved.json", "--scope", "row"]) == 0
    assert main(["prune", "m.onnx", "--plan", "saved.json"]) == 0
    assert main(["verify", "m.pruned.onnx"]) == 0
    assert main(["verify", "m.pruned.onnx", "m.onnx", "--feeds", "good.npz"]) == 0
    assert "Verified." in capsys.readouterr().out
    assert main(["verify", "m.pruned.onnx", "m.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["plan", "m.onnx", "--scope", "row", "--json"]) == 0
    assert capsys.readouterr().out == (folder / "saved.json").read_text()


def test_default_output_is_beside_the_input(folder: Path) -> None:
    assert main(["prune", "m.onnx", "--quiet"]) == 0
    assert "m.pruned.onnx" in names(folder)


def test_json_has_no_infinities(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
        onnx.helper.make_node("NonZero", ["r"], ["y"]),
        onnx.helper.make_node("Round", ["h"], ["r"]),
    ]
    nodes[1], nodes[2] = nodes[2], nodes[1]
    w = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    proto = model(nodes, [value("x", [2, 4])], [value("y", None, 7)], [tensor("w", w)])
    write(proto, folder / "nz.onnx")
    assert main(["prune", "nz.onnx", "--json"]) == 0
    json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("emp ")


# of each command, whether both models are run on the feeds, and what --verbose adds
COMMANDS = {
    "plan": (False, "uses"), "prune": (True, "uses"), "verify": (True, ""), "demo": (False, ""),
    "calibrate": (False, "seconds"), "sweep": (False, "seconds"), "compare": (False, "seconds"), "shrink": (False, ""),
    "pack": (True, "seconds"), "unpack": (True, "seconds"), "fuse": (False, ""), "run": (False, ""),
    "bench": (False, ""),
}  # fmt: skip


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "exit codes: 0 done" in text
    assert "130 interrupted" in text
    if not command:
        assert set(COMMANDS) <= set(text.split())
        return
    compares, verbose = COMMANDS[command]
    assert ("comparison of outputs" in text) == compares
    assert ("--verbose" in text) == bool(verbose)
    assert ("every use of each weight" in text) == (verbose == "uses")
    assert ("the seconds that each part of the work took" in text) == bool(verbose)


def test_an_interrupt_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(folder)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["emp_onnx.prune"], "verify_written", interrupted)
    assert main(["prune", "m.onnx"]) == 130
    assert "interrupted; no half-written file" in capsys.readouterr().err
    assert names(folder) == before


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (MemoryError(), 3, "this model needs more memory than there is"),
        (OSError(5, "Input/output error", "m.onnx"), 2, "Input/output error: 'm.onnx'"),
        (OSError("broken"), 2, "broken: 'a file'"),
        (BrokenPipeError(32, "Broken pipe"), 2, "Broken pipe: 'a file'"),
    ],
)
def test_the_machine_s_own_failures_are_sentences(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int,
    sentence: str,
) -> None:  # fmt: skip
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("emp_onnx.cli.pruning.prune", fails)
    assert main(["prune", "m.onnx"]) == code
    assert capsys.readouterr() == ("", f"emp: {sentence}\n")


def run(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "emp_onnx", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, **options)


def test_as_a_process(folder: Path) -> None:
    done = run("prune", "m.onnx", "out.onnx", "--scope", "row", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert run("verify", "out.onnx", "m.onnx", cwd=folder).returncode == 0
    failed = run("prune", "cut.onnx", cwd=folder)
    assert (failed.returncode, failed.stdout) == (3, "")
    assert run("prune", "m.onnx", "--beta", "0", cwd=folder).stderr == "emp: --beta must be > 0, got 0.0\n"


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m emp_onnx plan m.onnx --json | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("verify m.onnx", 1), ("verify m.onnx --json", 1), ("verify long.onnx m.onnx --json", 1), ("plan m.onnx", 0),
        ("plan m.onnx --json", 0), ("plan m.onnx --verbose", 0), ("plan --help", 0), ("prune cut.onnx", 3),
    ],
)  # fmt: skip
def test_a_reader_that_has_gone_changes_no_exit_code(folder: Path, line: str, code: int) -> None:
    name = "n" * 20_000  # longer than what Python keeps back before it writes
    long = gemm(np.random.default_rng(0)).model
    long.graph.node[0].output[0] = long.graph.output[0].name = name
    write(long, folder / "long.onnx")
    ends = os.pipe()
    os.close(ends[0])
    try:
        command = [sys.executable, "-m", "emp_onnx", *line.split()]
        options: dict[str, Any] = {"cwd": folder, "env": ENVIRONMENT, "stdout": ends[1], "stderr": subprocess.PIPE}
        done = subprocess.run(command, text=True, timeout=60, **options)
    finally:
        os.close(ends[1])
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_what_is_saved_is_saved_though_nobody_reads_the_seconds(folder: Path) -> None:
    ends = os.pipe()
    os.close(ends[0])
    try:
        asked = ["calibrate", "m.onnx", "--feeds", "good.npz", "-o", "s.npz", "--verbose"]
        command = [sys.executable, "-m", "emp_onnx", *asked]
        done = subprocess.run(
            command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=ends[1], text=True, timeout=60
        )
    finally:
        os.close(ends[1])
    assert done.returncode == 0
    assert "Wrote 's.npz'" in done.stdout
    assert (folder / "s.npz").exists()


def test_an_old_terminal_gets_ascii(folder: Path) -> None:
    command = [sys.executable, "-m", "emp_onnx", "plan", "m.onnx"]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert b"beta = 1" in done.stdout


@pytest.mark.alone
def test_help_is_fast_and_loads_neither_onnx_nor_onnxruntime() -> None:
    code = (
        "import sys; from emp_onnx.cli import main; main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('onnx', 'onnxruntime', 'rich', 'scipy')))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 5


def test_an_interrupt_from_outside(folder: Path) -> None:
    code = (
        "import sys, os, signal; from emp_onnx.cli import main; m = sys.modules['emp_onnx.prune']\n"
        "real = m.verify_written\n"
        "def slow(*a, **k):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(*a, **k)\n"
        "m.verify_written = slow\n"
        "sys.exit(main(['prune', 'm.onnx']))"
    )
    before = names(folder)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert done.returncode == 130
    assert names(folder) == before


def test_pack_and_unpack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, back = tmp_path / "m.onnx", tmp_path / "p.onnx", tmp_path / "u.onnx"
    write(two_layers(np.random.default_rng(0), 80).model, path)
    assert main(["prune", str(path), str(out), "--pack", "auto", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)["bytes"]
    assert before["after"]["plain"] < before["before"]["plain"]
    assert main(["unpack", str(out), str(back)]) == 0
    text = capsys.readouterr().out
    assert "asked for" in text
    assert f"Wrote '{back}'" in text
    assert main(["pack", str(back)]) == 0
    text = capsys.readouterr().out
    assert "smallest; next is" in text
    assert (tmp_path / "u.packed.onnx").stat().st_size == out.stat().st_size
    assert main(["verify", str(tmp_path / "u.packed.onnx"), str(path), "--quiet"]) == 0
    assert main(["pack", str(back), "--in-place", "--json", "--form", "packed"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"]["after"] == back.stat().st_size
    assert main(["pack", str(back), str(back)]) == 2
    assert main(["pack", str(back), str(out), "--in-place"]) == 2
    assert main(["pack", str(back), "--compact-indices", "--target", "checker-strict"]) == 2
    assert "--compact-indices must come without" in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "none.onnx")]) == 3
