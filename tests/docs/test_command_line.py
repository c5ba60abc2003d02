"""The page of the command line says of every option what `--help` says: choices, defaults, what holds of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from emp_onnx.cli.command import _parser
from emp_onnx.cli.options import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `emp (\w+)`$(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
SAID = ("the result is the same", "last bits", "every use of each weight")  # what must not be said of one place alone


def parsers() -> dict[str, argparse.ArgumentParser]:
    (found,) = [a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found)


OPTIONS = [
    pytest.param(command, action, id=f"{command} {action.option_strings[-1]}")
    for command, parser in parsers().items()
    for action in parser._actions
    if action.option_strings and action.option_strings[-1] != "--help"
]


def row(command: str, option: str) -> str:
    """What the page says of an option, there or where it points to."""
    (text,) = re.findall(rf"^\| (`(?:-\w`, `)?{option}[ `].*) \|$", SECTIONS[command], re.M)
    if other := re.search(r"as for (?:\[`emp |`)(\w+)`", text):
        text = f"{text} | {row(other[1], option)}"
    return text


def default(text: str, choices: list[str]) -> str | None:
    """The default that a text states: `default 1`, or the choice before `(default)`."""
    if plain := re.search(r"(?:; default|\(default:) ([^,;|)]+)", text):
        return plain[1].strip("` ")
    if choices and (marked := re.search(r"\([^()]*\bdefault\)", text)):
        named = re.findall(rf"(?<![\w-])(?:{'|'.join(map(re.escape, choices))})(?![\w-])", text[: marked.start()])
        return str(named[-1])
    return None


@pytest.mark.parametrize(("command", "action"), OPTIONS)
def test_page_and_help_say_the_same_of_an_option(command: str, action: argparse.Action) -> None:
    told, shown, choices = row(command, action.option_strings[-1]), str(action.help), list(action.choices or ())
    but = re.findall(r"but for `([\w-]+)`", told)
    assert not set(but) & set(choices)
    for choice in choices:
        assert re.search(rf"[` ]{re.escape(choice)}`", told), f"{choice} of {told}"
    assert default(told, choices) == default(shown, choices)
    if action.default not in (None, False, []):
        assert default(shown, choices) == action.default
    for words in SAID:
        assert (words in told) == (words in shown), words


def test_options_that_are_like_another_command_s_have_its_choices() -> None:
    every = parsers()
    for command, parser in every.items():
        for action in parser._actions:
            if not action.option_strings or not action.choices:
                continue
            option = action.option_strings[-1]
            other = re.search(rf"^\| `{option}[ `].*as for (?:\[`emp |`)(\w+)`", SECTIONS[command], re.M)
            if other and option in every[other[1]]._option_string_actions:
                like = every[other[1]]._option_string_actions[option].choices or ()
                but = re.findall(r"but for `([\w-]+)`", row(command, option))
                assert set(action.choices) == set(like) - set(but), (command, option)


def test_a_default_that_differs_is_found() -> None:
    assert default("how many; default 1", []) == "1"
    assert default("how many (default: all)", []) == "all"
    assert default("`a`: so, `b` (default)", ["a", "b"]) == "b"
    assert default("a: so (default), b", ["a", "b"]) == "a"
    assert default("nothing", ["a"]) is None


def test_the_exit_codes_are_those_of_help() -> None:
    table = set(re.findall(r"^\| (\d+) \|", PAGE.split("## Exit codes")[1], re.M))
    assert table == set(re.findall(r"(?<!\S)(\d+)  ", CODES)) == {"0", "1", "2", "3", "130"}
