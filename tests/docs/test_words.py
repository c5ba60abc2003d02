"""What README.md and docs/ promise about each other and about the code stays true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def test_picture_and_table_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "pictures.py"), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}, which does not exist"


def test_readme_has_each_set_up_line_once() -> None:
    lines = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert [line.split("/")[-1] for line in lines] == ["emp demo", "python -m pytest"]


def test_the_command_line_page_names_every_option() -> None:
    """Each option that `emp COMMAND --help` shows stands in the section of that command, and no other does."""
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `emp (\w+)`$(.*?)(?=^## |\Z)", page, re.M | re.S))
    for command, section in sections.items():
        done = subprocess.run(
            [sys.executable, "-m", "emp_onnx", command, "--help"], capture_output=True, encoding="utf-8", timeout=60
        )
        assert done.returncode == 0, done.stderr
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout.split("exit codes:")[0])) - {"--help"}
        told = set(re.findall(r"^\| `(?:-\w`, `)?(--[a-z-]+)", section, re.M))
        assert told == shown, command
    listed = subprocess.run(
        [sys.executable, "-m", "emp_onnx", "--help"], capture_output=True, encoding="utf-8", timeout=60
    )
    commands = set(re.findall(r"^    (\w+)(?: |$)", listed.stdout, re.M))
    assert commands == set(sections)


def test_the_licence_text_is_whole() -> None:
    text = (DOCS / "licenses" / "Apache-2.0.txt").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_reference_names_everything_public() -> None:
    import emp_core

    page = (DOCS / "reference" / "emp_core.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\.\. auto(?:function|class|exception):: emp_core\.(\w+)", page, re.M))
    assert told == set(emp_core.__all__) - {"criteria", "testing"}
