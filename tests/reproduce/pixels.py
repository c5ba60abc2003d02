"""Pixels on a photograph that ships with scikit-learn (flower.jpg, CC BY 2.0): per channel, and per 4 × 4 patch."""

from __future__ import annotations

import numpy as np

from emp_core.signals import pixels, psnr, spectrum, ssim
from tests.benchmarks._report import table

from ._data import Options


def photograph() -> np.ndarray:  # type: ignore[type-arg]
    """(427, 640, 3), 8 bits."""
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image("flower.jpg"))


def rows_of(image: np.ndarray) -> list[tuple[str, np.ndarray, float]]:  # type: ignore[type-arg]
    """What was done, the image after, and the sparsity."""
    found = []
    for beta in (0.75, 1.0, 1.25):
        for patch in (None, (4, 4)):
            kept, chosen = pixels(image, beta=beta, patch=patch)
            name = "per channel" if patch is None else "per 4 × 4 patch and channel"
            found.append((f"{name}, β = {beta:g}", kept, 1 - float(chosen.mask.mean())))
    lines, count = spectrum(np.moveaxis(image, -1, 0).astype(float))
    again = np.clip(np.rint(np.moveaxis(lines, 0, -1)), 0, 255).astype(np.uint8)
    found.append(
        (
            "spectrum of each line, β = 1",
            again,
            1 - count / (lines.shape[0] * lines.shape[1] * (lines.shape[2] // 2 + 1)),
        )
    )
    return found


def run(options: Options) -> str:
    """The table, and the pictures beside the page."""
    image, rows = photograph(), []
    paper = {"per channel, β = 1": "26.7 %, 29.4 dB", "per 4 × 4 patch and channel, β = 1": "32.3 %, 38.3 dB"}
    for name, after, sparsity in rows_of(image):
        rows.append(
            [
                name,
                f"{100 * sparsity:.1f} %",
                f"{psnr(image, after):.1f} dB",
                f"{ssim(image, after):.3f}",
                paper.get(name, ""),
            ]
        )
    return table(["", "sparsity", "PSNR", "SSIM", "paper (another picture)"], rows)
