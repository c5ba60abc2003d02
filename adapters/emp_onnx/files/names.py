"""Where a result goes when nothing is said."""

from __future__ import annotations

from pathlib import Path

__all__ = ["default_out"]


def default_out(source: Path, word: str) -> Path:
    """`IN.word.onnx` beside `IN.onnx`, however the ending is written.

    >>> default_out(Path("a/m.ONNX"), "pruned").name
    'm.pruned.onnx'
    """
    stem = source.name[: -len(".onnx")] if source.name.lower().endswith(".onnx") else source.name
    return source.with_name(f"{stem}.{word}.onnx")
