"""The package as a whole: its public names, its errors, what importing it costs, and its examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

import emp_core
import emp_onnx
from emp_onnx import errors
from tests.onnx.builders import gemm, write

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(
    item.name
    for item in pkgutil.walk_packages(emp_onnx.__path__, "emp_onnx.")
    if not item.name.endswith(("__main__", ".train"))  # commands; the second needs what only training needs
)


def test_all_is_sorted_and_holds_every_public_name() -> None:
    public = [
        name
        for name, item in vars(emp_onnx).items()
        if not name.startswith("_")
        and type(item).__name__ != "module"
        and getattr(item, "__module__", "").startswith("emp")
    ]
    assert sorted(public) == emp_onnx.__all__ == sorted(emp_onnx.__all__)


def test_the_verbs_are_functions_not_rooms() -> None:
    for verb in ("load", "find_weights", "plan", "apply", "verify", "save", "prune"):
        assert callable(getattr(emp_onnx, verb))


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_names_what_it_offers(room: str) -> None:
    module = importlib.import_module(room)
    assert module.__doc__
    for name in module.__all__:
        assert getattr(module, name).__doc__ or name.isupper()


@pytest.mark.parametrize("room", ROOMS)
def test_examples_run(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(room)).failed == 0


def test_the_error_tree() -> None:
    assert issubclass(errors.OnnxError, emp_core.EmpError)
    codes = {name: getattr(emp_onnx, name).exit_code for name in emp_onnx.__all__ if name.endswith("Error")}
    assert codes == {
        "MissingExtraError": 2, "ModelError": 3, "OnnxError": 3, "OutputError": 2, "PlanError": 2, "UsageError": 2,
        "VerifyError": 1,
    }  # fmt: skip


def imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stdout.split())


def test_importing_pulls_in_nothing_heavy_and_this_test_can_fail() -> None:
    heavy = {"onnx", "onnxruntime", "onnx_ir", "scipy", "rich"}
    assert not imported("import emp_onnx") & heavy
    assert imported("import emp_onnx, onnx") & heavy == {"onnx"}


def test_only_the_command_line_prints_or_exits() -> None:
    for file in (ROOT / "adapters" / "emp_onnx").rglob("*.py"):
        if file.parent.name != "cli" and file.name not in ("__main__.py", "train.py"):
            text = file.read_text(encoding="utf-8")
            assert "print(" not in text.replace("console.print(", "")
            assert "sys.exit" not in text


def alike(files: list[Path]) -> list[str]:
    """Functions of some length whose bodies are the same, by the files they are in."""
    found: dict[str, list[str]] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if sum(1 for line in body for _ in ast.walk(line)) >= 20:
                    found.setdefault("".join(map(ast.dump, body)), []).append(f"{file.name}: {node.name}")
    return [", ".join(names) for names in found.values() if len(names) > 1]


def test_no_function_is_written_twice_and_this_test_can_fail(tmp_path: Path) -> None:
    assert alike(sorted((ROOT / "adapters" / "emp_onnx").rglob("*.py"))) == []
    text = "def {}(error):\n    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]\n"
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(text.format(name))
    assert alike(sorted(tmp_path.iterdir())) == ["one.py: one, other.py: other"]


def test_no_room_needs_protobufs_but_those_that_make_parts_of_a_graph_for_onnxruntime() -> None:
    for file in (ROOT / "adapters" / "emp_onnx").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        # the demo, parts of a graph and other shapes are made in protobufs; what fuses works on what a session is
        # given, which is whole in memory anyway; everything else works on the bytes
        if not {"demo", "calibration", "shrink", "fused"} & set(file.parts):
            assert "import onnx\n" not in text
            assert "from onnx import" not in text
            assert "google.protobuf" not in text


def test_a_missing_onnxruntime_says_how_to_add_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(gemm(np.random.default_rng(0)).model, tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(emp_onnx.MissingExtraError, match=r"pip install 'effective-pruning\[onnx\]'$"):
        emp_onnx.prune(path)


def arrows(house: str) -> dict[str, set[str]]:
    """Which rooms of a package each room imports from, anywhere in its files, also for the sake of a type."""
    found: dict[str, set[str]] = {}
    home = (ROOT / "adapters").joinpath(*house.split("."))
    for path in home.rglob("*.py"):
        room = path.relative_to(home).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for name in [node.module] if isinstance(node, ast.ImportFrom) and node.module else []:
                other = name.removeprefix(f"{house}.").split(".")[0]
                if name.startswith(f"{house}.") and other != room:
                    found.setdefault(room, set()).add(other)
    return found


@pytest.mark.parametrize(("house", "rooms"), [("emp_onnx", 15), ("emp_onnx.shrink", 15)])
def test_rooms_import_each_other_in_one_direction_and_this_test_can_fail(house: str, rooms: int) -> None:
    there = arrows(house)
    assert len([*TopologicalSorter(there).static_order()]) > rooms
    low, high = next((other, room) for room, others in there.items() for other in others)
    with pytest.raises(CycleError):
        TopologicalSorter({**there, low: {high}}).prepare()


@pytest.mark.parametrize("before", [True, False])
def test_looking_for_garbage_is_as_it_was_after_the_import(before: bool) -> None:
    turn = "" if before else "gc.disable(); "
    code = f"import gc; {turn}import emp_onnx; assert gc.isenabled() == {before}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_was_frozen_before_the_import_stays_frozen_and_nothing_else_is(frozen: bool) -> None:
    before = "gc.freeze(); " if frozen else ""
    code = f"import gc; {before}import emp_onnx; assert bool(gc.get_freeze_count()) == {frozen}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_import_left_is_old_and_can_still_be_collected() -> None:
    code = (
        "import gc, weakref; exec('class A: pass'); a = A(); a.a = a; seen = weakref.ref(a); gc.disable(); "
        "import emp_onnx; del a; gc.collect(0); assert seen() is not None; gc.collect(); assert seen() is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
