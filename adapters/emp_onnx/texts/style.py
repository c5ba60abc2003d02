"""How text is drawn: tables, widths, colours, and what ASCII cannot show."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from emp_onnx.errors import MissingExtraError

__all__ = ["Style", "finish", "many", "table"]


@dataclass(frozen=True)
class Style:
    """How to draw: width in characters (None: as wide as the contents), colours, whether only ASCII can be shown."""

    width: int | None = None
    colour: bool = False
    ascii: bool = False

    @classmethod
    def of(cls, stream: IO[str]) -> Style:
        """The style for a stream: full contents without colours unless it is a terminal."""
        import shutil

        try:
            "β·Σ─≤".encode(getattr(stream, "encoding", None) or "utf-8")
            plain = False
        except (UnicodeEncodeError, LookupError):
            plain = True
        if not stream.isatty():
            return cls(None, False, plain)
        return cls(shutil.get_terminal_size().columns, "NO_COLOR" not in os.environ, plain)


def table(
    headers: Sequence[str], lines: Iterable[Sequence[str]], total: Sequence[str] | None, left: int, style: Style
) -> str:
    """A table; the first `left` columns are text, the others numbers."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingExtraError("rich") from error
    shape: Any = box.ASCII2 if style.ascii else box.SIMPLE_HEAD
    drawn = Table(box=shape, show_footer=total is not None, footer_style="bold", header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        footer = Text(total[i]) if total else ""
        drawn.add_column(
            Text(header), footer, justify="left" if i < left else "right", no_wrap=i >= left, overflow="fold",
            min_width=8 if i == 0 else None,
        )  # fmt: skip
    for line in lines:
        drawn.add_row(*(Text(cell) for cell in line))
    # never narrower than the numbers need: a terminal wraps lines, it must not lose figures
    width = max(style.width or 0, 110) if style.width else 10_000
    console = Console(
        file=io.StringIO(), width=width, force_terminal=style.colour, no_color=not style.colour, legacy_windows=False,
        color_system="standard" if style.colour else None,
    )  # fmt: skip
    console.print(drawn)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def many(count: int, noun: str) -> str:
    """So many of them, in words."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def finish(parts: Sequence[str], style: Style) -> str:
    """All parts, one below the other, in letters that can be shown."""
    text = "\n".join(parts)
    if not style.ascii:
        return text
    for letter, plain in (
        ("β", "beta"),
        ("Σ", "sum "),
        ("≤", "<="),
        ("×", "x"),
        ("·", "*"),
        ("⌊", "floor("),
        ("⌋", ")"),
        ("→", "->"),
    ):
        text = text.replace(letter, plain)
    return text.encode("ascii", "replace").decode()
