"""Every file, folder and module that docs/design.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```text\n(.*?)^```$", re.M | re.S)
ROOMS = ("emp_core", "adapters", "tests", "docs")
ENDINGS = "py|cpp|hpp|md|onnx|npz"
OTHERS = {"np", "onnx", "onnxruntime", "torch", "jax", "keras", "sklearn", "safetensors"}  # what they hold is theirs
ABSENT = {"adapters/__init__.py"}  # named to say that it must not be there
FILES = sorted(
    path.relative_to(ROOT)
    for room in ROOMS
    for path in (ROOT / room, *(ROOT / room).rglob("*"))
    if "_build" not in path.parts and "__pycache__" not in path.parts
)


def named(tail: str) -> list[Path]:
    """The files and folders whose path ends so."""
    return [path for path in FILES if f"/{path.as_posix()}".endswith(f"/{tail}")]


def module(name: str) -> list[Path]:
    """The files and folders that a name of a module or a room may mean, with `.` or `/` between its parts."""
    place = name.replace(".", "/")
    return [*named(f"{place}.py"), *named(place)]


def missing(name: str) -> bool:
    """Whether nothing in the tree is what this name says; a name that says nothing of files is never missing."""
    if name.endswith("/"):
        return not [path for path in named(name.rstrip("/")) if (ROOT / path).is_dir()]
    if re.fullmatch(rf"[\w./-]+\.({ENDINGS})", name):
        return not named(name)
    if re.fullmatch(r"\w+(/\w+)+", name):
        return not module(name)
    if re.fullmatch(r"\w+(\.\w+)+", name) and name.split(".")[0] not in OTHERS:
        if module(name):
            return False
        before, _, last = name.rpartition(".")  # something in a module
        inside = [ROOT / path for path in module(before)]
        texts = [(path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8") for path in inside]
        return not any(re.search(rf"\b{last}\b", text) for text in texts)
    if re.fullmatch(r"_[a-z]\w+", name):
        return not module(name)
    return False


def in_prose(text: str) -> set[str]:
    """What stands between single backticks."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))


def in_drawings(text: str) -> set[str]:
    """Folders, and the names before a colon: those of modules. A cell of a drawing ends with two spaces or a line."""
    found = set()
    for drawing in FENCE.findall(text):
        for cell in re.split(r"\n|\s{2,}|; |[─├└│┬]+ ?", drawing):
            found.update(re.findall(r"(?<!\S)[\w./]+/(?=\W|$)", cell))
            before, colon, _ = cell.strip().partition(": ")
            names = before.split(", ") if colon else []
            if all(re.fullmatch(r"[\w./]+", name) and name not in OTHERS for name in names):
                found.update(name if re.search(r"\W", name) else f"{name}.py" for name in names)
    return found


@pytest.mark.parametrize("name", sorted((in_prose(TEXT) | in_drawings(TEXT)) - ABSENT))
def test_what_the_design_names_is_there(name: str) -> None:
    assert not missing(name), f"docs/design.md names {name}, which is not in the tree"


def test_what_is_not_there_is_missed() -> None:
    """The check above can fail."""
    gone = ("_ort.py", "fused_chains.py", "fused/nothing.py", "runtime/nothing", "emp_core.nothing", "_nothing", "no/")
    assert [name for name in gone if not missing(name)] == []
    here = ("emp_core/_exact.py", "fused/chains.py", "runtime/continued", "emp_core.select", "wire.Blob", "np.where")
    assert [name for name in here if missing(name)] == []
    assert in_drawings("```text\nfiles/  reader, wire: bytes\n```\n") == {"files/", "reader.py", "wire.py"}


def test_the_number_of_files_of_kernels() -> None:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    text = (ROOT / named("kernels_impl.hpp")[0]).read_text(encoding="utf-8")
    count = len(re.findall(r'^#include "\w+_impl\.hpp"', text, re.M))
    assert f"`kernels_impl.hpp` and the {words[count]} files that it takes in" in " ".join(TEXT.split())
