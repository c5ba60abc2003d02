"""Signals: pixels by channel or by patch, spectra, tokens, features; and how far a pruned picture is from the first.

`select` on arrays is all there is to it; this room only knows how pictures are laid out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError
from ._scope import Blocks, Columns
from ._select import Selection, select

__all__ = ["pixels", "psnr", "spectrum", "ssim"]

Array = NDArray[Any]


def pixels(
    image: Any, /, *, beta: float = 1.0, patch: tuple[int, int] | None = None, channel_axis: int | None = -1
) -> tuple[Array, Selection]:
    """An image with only the pixels that the rule keeps; the others are 0.

    Args:
        image: NumPy, (height, width) or with a channel axis; intensities ≥ 0.
        beta: multiplier of the effective size.
        patch: (height, width) of the patches that are one pool each, in every channel; None: a channel is one pool.
        channel_axis: where channels lie; None: there are none.

    Returns:
        The pruned image, of the same type, and the selection (its mask has the channels last).

    >>> kept, chosen = pixels(np.array([[9, 1], [8, 2]], np.uint8), channel_axis=None)
    >>> kept.tolist(), int(chosen.k)
    ([[9, 0], [8, 0]], 2)
    """
    a = np.asarray(image)
    if a.ndim != (2 if channel_axis is None else 3):
        raise ArgumentError(f"image must have {2 if channel_axis is None else 3} axes, got shape {a.shape}")
    if patch is not None and (not isinstance(patch, (tuple, list)) or len(patch) != 2):
        raise ArgumentError(f"patch must be (height, width), got {patch}")
    if channel_axis is None:
        chosen = select(a, beta=beta, scope="whole" if patch is None else Blocks(patch))
        return np.where(chosen.mask, a, 0).astype(a.dtype), chosen
    last = np.moveaxis(a, channel_axis, -1)
    if patch is None:
        chosen = select(last, beta=beta, scope=Columns())
        mask = chosen.mask
    else:
        chosen = select(np.ascontiguousarray(np.moveaxis(last, -1, 0)), beta=beta, scope=Blocks(patch))
        mask = np.moveaxis(chosen.mask, 0, -1)
    return np.moveaxis(np.where(mask, last, 0).astype(a.dtype), -1, channel_axis), chosen


def spectrum(signal: Any, /, *, beta: float = 1.0) -> tuple[Array, int]:
    """A real signal from the frequencies that the rule keeps: amplitudes compete along the last axis.

    Returns:
        The signal again, float64, and how many coefficients of its real Fourier transform stayed, over all.

    >>> t = np.arange(64) / 64
    >>> again, k = spectrum(np.sin(2 * np.pi * 3 * t) + 0.01 * np.cos(2 * np.pi * 9 * t))
    >>> k, bool(abs(again - np.sin(2 * np.pi * 3 * t)).max() < 1e-12)
    (1, True)
    """
    a = np.asarray(signal, np.float64)
    if a.ndim < 1 or not a.size:
        raise ArgumentError(f"signal must have samples, got shape {a.shape}")
    coefficients = np.fft.rfft(a, axis=-1)
    size = np.abs(coefficients)
    rows = select(size.reshape(-1, size.shape[-1]), beta=beta, scope="rows").mask.reshape(size.shape)
    return np.fft.irfft(np.where(rows, coefficients, 0), n=a.shape[-1], axis=-1), int(rows.sum())


def psnr(image: Any, other: Any, /, *, peak: float = 255.0) -> float:
    """Peak signal to noise ratio in dB, ``10·log₁₀(peak²/mean squared error)``; ∞ for equal images.

    >>> round(psnr([[0.0, 255.0]], [[0.0, 245.0]]), 2)
    31.14
    """
    a, b = _two(image, other)
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def ssim(image: Any, other: Any, /, *, peak: float = 255.0, sigma: float = 1.5) -> float:
    """Mean structural similarity (Wang et al., 2004): Gaussian windows of 11 × 11, constants 0.01 and 0.03, over all
    windows that lie within the image, and over channels where the images have a last axis of them. In [−1, 1].

    >>> ssim(np.eye(12) * 255, np.eye(12) * 255)
    1.0
    """
    a, b = _two(image, other)
    if a.ndim not in (2, 3) or min(a.shape[:2]) < 11:
        raise ArgumentError(f"images must be at least 11 × 11, got shape {a.shape}")
    if a.ndim == 3:
        return float(np.mean([ssim(a[..., c], b[..., c], peak=peak, sigma=sigma) for c in range(a.shape[-1])]))
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()

    def blur(x: Array) -> Array:
        for axis in (0, 1):
            windows = np.lib.stride_tricks.sliding_window_view(x, 11, axis=axis)
            x = windows @ kernel
        return x

    ma, mb = blur(a), blur(b)
    va, vb, vab = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return float(np.mean((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))


def _two(image: Any, other: Any) -> tuple[Array, Array]:
    a, b = np.asarray(image, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape or not a.size:
        raise ArgumentError(f"images must have one shape, got {a.shape} and {b.shape}")
    return a, b
