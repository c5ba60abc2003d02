"""Texts of the command line as numbers: each reader says what is allowed and what came. An absent text stays absent."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from emp_onnx.errors import UsageError, quote

__all__ = ["listed", "number", "positive", "seed", "share", "size", "sparsity", "threads", "whole"]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}


def number(option: str, text: str | None, allowed: str, holds: Callable[[float], bool]) -> float | None:
    """A number for which `holds` is true; `allowed` says in words for which it is."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{option} must be a number {allowed}, got {quote(text)}") from None
    if not holds(value):
        raise UsageError(f"{option} must be {allowed}, got {value}")
    return value


def positive(option: str, text: str | None) -> float | None:
    """A finite number above 0."""
    return number(option, text, "> 0", lambda x: 0 < x < float("inf"))


def sparsity(option: str, text: str | None) -> float | None:
    """A share of weights to remove, not all of them: `0.5` or `50%`."""
    if text is None:
        return None
    percent = text.endswith("%")
    value = number(option, text.removesuffix("%"), "≥ 0 and < 1", lambda x: 0 <= x < (100 if percent else 1))
    return value / 100 if percent and value is not None else value


def share(option: str, text: str | None) -> float | None:
    """A share: `0.01`, `1%`, or `0.6x` where it is one of something measured."""
    if text is None:
        return None
    percent = text.endswith("%")
    bare = text[:-1] if percent else text.removesuffix("x")
    value = number(option, bare, "≥ 0, as 0.01 or 1%", lambda x: 0 <= x < float("inf"))
    return value / 100 if percent and value is not None else value


def size(option: str, text: str | None) -> int | None:
    """Bytes: `4000000`, `4MB`, `4MiB`."""
    if text is None:
        return None
    unit = next((u for u in sorted(_UNITS, key=len, reverse=True) if text.upper().endswith(u)), "")
    value = number(
        option, text[: len(text) - len(unit)], "> 0, as 4000000 or 4MB", lambda x: 0 < x < float("inf")
    )  # fmt: skip
    return None if value is None else int(value * _UNITS.get(unit, 1))


def whole(option: str, text: str | None, least: int) -> int | None:
    """A whole number of at least `least`."""
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        raise UsageError(f"{option} must be a whole number ≥ {least}, got {quote(text)}") from None
    if value < least:
        raise UsageError(f"{option} must be ≥ {least}, got {value}")
    return value


def listed(option: str, text: str | None) -> list[int]:
    """Whole numbers of at least 1 with commas between them; [1] without any."""
    return [whole(option, part, 1) or 1 for part in text.split(",")] if text is not None else [1]


def seed(options: argparse.Namespace) -> int:
    """`--seed`, 0 where it is not given."""
    return whole("--seed", options.seed, 0) or 0


def threads(options: argparse.Namespace) -> int | None:
    """`--threads`, if given: not so many more than there are processors that starting them is all that is done."""
    count, most = whole("--threads", options.threads, 1), max(256, 4 * (os.cpu_count() or 1))
    if count is not None and count > most:
        raise UsageError(f"--threads must be ≤ {most}, got {count}")
    return count
