"""How small a file gets."""

from __future__ import annotations

import zlib
from pathlib import Path

__all__ = ["gzipped"]


def gzipped(file: Path) -> int:
    """The bytes that gzip makes of a file, which is not held whole."""
    packer, size = zlib.compressobj(6, wbits=31), 0
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())
