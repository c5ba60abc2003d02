"""Draw the pictures of docs/signals.md, and write its table: ``python -m tests.reproduce.pictures``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from emp_core.signals import pixels, psnr, ssim
from tests.benchmarks._report import table, write

from .pixels import photograph

PAGE = Path(__file__).resolve().parents[2] / "docs" / "signals.md"


def main() -> None:
    """Three pictures of half the size, and their figures."""
    whole = Image.fromarray(photograph())
    image = np.asarray(whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.BOX))
    folder, rows = PAGE.parent / "signals", []
    folder.mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / "before.png", optimize=True)
    for name, patch in (("channel", None), ("patch", (4, 4))):
        kept, chosen = pixels(image, patch=patch)
        Image.fromarray(kept).save(folder / f"{name}.png", optimize=True)
        rows.append(
            [
                "per channel" if patch is None else "per 4 × 4 patch and channel",
                f"{100 * (1 - float(chosen.mask.mean())):.1f} %",
                f"{psnr(image, kept):.1f} dB",
                f"{ssim(image, kept):.3f}",
            ]
        )
    write(PAGE, "signals", table(["", "sparsity", "PSNR", "SSIM"], rows))


if __name__ == "__main__":
    main()
