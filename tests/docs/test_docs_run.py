"""Every Python block and every `emp` line of README.md and docs/ runs, page by page, from top to bottom.

A ``python`` block is executed; a ``pycon`` block is a doctest. In a ``console`` block the lines that begin with
``$ emp`` run in a subprocess and must exit 0, or with the code in a comment at their end (``# exit code 1``). All
blocks of a page share one namespace and one temporary directory, which holds the demo's network as ``model.onnx`` for
README.md.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[2]
# what a block imports -> the library it is run for
OPTIONAL = {
    "torch": ("torch", "emp_torch"),
    "optax": ("optax", "emp_jax"),
    "jax": ("jax",),
    "keras": ("keras", "emp_keras"),
    "sklearn": ("sklearn", "emp_sklearn"),
    "safetensors": ("safetensors",),
    "cupy": ("cupy",),
    "tensorflow": ("tensorflow",),
}
WITHIN = {"optax": ("jax",), "keras": ("torch", "jax", "tensorflow")}  # what a library brings, or runs on
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<kind>python|pycon|console)\n(?P<body>.*?)^(?P=fence)\s*$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One piece of a page: what kind, what text, at which line, and which optional library it imports."""

    kind: str
    body: str
    line: int

    @property
    def needs(self) -> frozenset[str]:
        found = {
            library
            for library, names in OPTIONAL.items()
            if any(re.search(rf"\b(import|from) {name}\b|\b{name}\.[a-zA-Z]", self.body) for name in names)
        }
        for library, others in WITHIN.items():
            if library in found:
                found -= set(others)
        return frozenset(found)


def blocks(text: str) -> list[Block]:
    return [
        Block(found["kind"], found["body"], text.count("\n", 0, found.start("body")) + 1)
        for found in FENCE.finditer(text)
    ]


def pages() -> Iterator[Any]:
    """Each page once without optional libraries, and once more with each one that it uses."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        found = blocks(path.read_text(encoding="utf-8"))
        if "_build" in path.parts or not found:
            continue
        name = path.relative_to(ROOT).as_posix()
        yield pytest.param(path, None, id=name)
        for library in sorted(frozenset().union(*(block.needs for block in found))):
            yield pytest.param(path, library, id=f"{name}[{library}]")


def run_python(block: Block, namespace: dict[str, Any], page: Path) -> None:
    # as many empty lines before as the page has, so that a traceback gives the page's own line
    exec(compile("\n" * (block.line - 1) + block.body, str(page), "exec"), namespace)


def run_doctest(block: Block, namespace: dict[str, Any], page: Path) -> None:
    test = doctest.DocTestParser().get_doctest(block.body, namespace, page.name, str(page), block.line - 1)
    seen: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=seen.append, clear_globs=False)
    assert runner.failures == 0, "".join(seen)
    namespace.update(test.globs)


def run_console(block: Block, folder: Path, page: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}"}
    for number, line in enumerate(block.body.splitlines(), block.line):
        if not line.startswith("$ emp"):
            continue
        command, _, comment = line[2:].partition("#")
        code = re.search(r"exit code (\d+)", comment)
        words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", "emp_onnx", *words[1:]],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=120,
        )  # fmt: skip
        expected = int(code[1]) if code else 0
        assert done.returncode == expected, f"{page.name}:{number}: {line}\n{done.stdout}{done.stderr}"


@pytest.fixture(autouse=True)
def same_examples() -> Iterator[None]:
    """The pages' property tests draw the same examples in every run: a page either runs or does not."""
    before = settings.get_current_profile_name()
    settings.register_profile("pages", derandomize=True, database=None)
    settings.load_profile("pages")
    yield
    settings.load_profile(before)


@pytest.mark.parametrize(("page", "library"), list(pages()))
def test_page_runs(page: Path, library: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library is not None and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if library == "keras":
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # of Keras with PyTorch
        monkeypatch.setenv("KERAS_BACKEND", next((b for b in ("torch", "jax", "tensorflow") if find_spec(b)), "none"))
    monkeypatch.chdir(tmp_path)
    if page.name == "README.md":
        shutil.copy(ROOT / "adapters" / "emp_onnx" / "demo" / "digits.onnx", tmp_path / "model.onnx")
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.needs - {library}:
            continue
        if block.kind == "python":
            run_python(block, namespace, page)
        elif block.kind == "pycon":
            run_doctest(block, namespace, page)
        else:
            run_console(block, tmp_path, page)


def test_a_wrong_block_fails() -> None:
    """The three runners can fail; else the test above would say nothing."""
    page = Path("page.md")
    with pytest.raises(AssertionError):
        run_python(Block("python", "assert 1 == 2\n", 1), {}, page)
    with pytest.raises(AssertionError, match="Expected"):
        run_doctest(Block("pycon", ">>> 1 + 1\n3\n", 1), {}, page)
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        run_console(Block("console", "$ emp prune missing.onnx\n", 1), Path.cwd(), page)


def test_blocks_are_found() -> None:
    text = "a\n```python\nx = 1\n```\n```sh\nemp\n```\n````console\n$ emp demo\n````\n"
    assert [(b.kind, b.body, b.line) for b in blocks(text)] == [
        ("python", "x = 1\n", 3),
        ("console", "$ emp demo\n", 9),
    ]
    assert Block("python", "import numpy\nfrom torch import nn\n", 1).needs == {"torch"}
    assert Block("python", "import emp_jax\nimport jax.numpy as jnp\n", 1).needs == {"optax"}
