"""Convolutions with packed weights against a slow and obvious one in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native import ENDINGS, Conv, Floats, instruction_sets


def convolve(x: Any, weight: Any, group: int, stride: Any, dilation: Any, pads: Any) -> Any:
    """The definition, tap by tap."""
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    images, _, height, width = x.shape
    outputs, channels, kernel_h, kernel_w = weight.shape
    out_h = (height - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    y = np.zeros((images, outputs, out_h, out_w))
    for g in range(group):
        rows = slice(g * outputs // group, (g + 1) * outputs // group)
        for ky in range(kernel_h):
            for kx in range(kernel_w):
                top, left = ky * dilation[0], kx * dilation[1]
                part = x[
                    :, g * channels : (g + 1) * channels, top : top + stride[0] * (out_h - 1) + 1 : stride[0],
                    left : left + stride[1] * (out_w - 1) + 1 : stride[1],
                ]  # fmt: skip
                y[:, rows] += np.einsum("oc,nchw->nohw", weight[rows, :, ky, kx], part)
    return y


def around(x: Any, pads: Any) -> Any:
    """Of a padded image the greatest that stands within three pixels: what a tile of 4 x 4 may hold beside a pixel."""
    x = np.pad(np.where(np.isfinite(x), np.abs(x), 0), ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    for axis in (2, 3):
        wide = np.pad(x, [(3, 3) if i == axis else (0, 0) for i in range(4)])
        x = np.lib.stride_tricks.sliding_window_view(wide, 7, axis=axis).max(axis=-1, initial=0)
    return x


def ended(x: Any, kind: str, low: Any, high: float) -> Any:
    """What follows, by definition; NaN stays NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "clip":
            return np.minimum(np.maximum(x, low), high)
        if "relu" in kind:
            return np.where(x < 0, x * low, x)
        if kind == "gelu":
            return x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))) / 2
        if kind == "gelu_tanh":
            return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        if kind == "swish":
            return x / (1 + np.exp(-x))
        return x * np.clip(x / 6 + 0.5, 0, 1) if kind == "hard_swish" else x


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, rows = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (2, 5), (1, 7), (4, 1)]))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 1), (1, 2)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]))
    pads = draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0), (3, 2, 1, 5)]))
    size = [
        max(1, dilation[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + 2]) + draw(st.integers(0, 25)) for i in range(2)
    ]
    weight = rng.standard_normal((group * rows, channels, *kernel)).astype(np.float32)
    weight[rng.random(weight.shape) >= draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]))] = 0
    return {
        "x": rng.standard_normal((draw(st.integers(0, 3)), group * channels, *size)).astype(np.float32),
        "weight": weight, "bias": rng.standard_normal(group * rows).astype(np.float32) if draw(st.booleans()) else None,
        "relu": draw(st.booleans()), "added": draw(st.booleans()),
        "ending": draw(st.none() | st.tuples(st.sampled_from(sorted(ENDINGS)), st.sampled_from([-1.0, 0.1, 0.0]),
                                             st.sampled_from([6.0, 0.5, np.inf]))),
        "geometry": {"group": group, "stride": stride, "dilation": dilation, "pads": pads},
    }  # fmt: skip


def check(problem: dict[str, Any], isa: str, threads: int = 1) -> None:
    x, weight, bias, geometry = (problem[name] for name in ("x", "weight", "bias", "geometry"))
    kernel = Conv(weight, **geometry)
    by_winograd = kernel.by_winograd(x, isa, wherever="wherever" in problem)
    shape = (len(x), kernel.outputs, kernel.out_size(0, x.shape[2]), kernel.out_size(1, x.shape[3]))
    added = np.random.default_rng(1).standard_normal(shape).astype(np.float32) if problem["added"] else None
    ending = problem.get("ending")
    slope = np.random.default_rng(2).uniform(-1, 1, kernel.outputs).astype(np.float32)
    slope = slope if ending is not None and ending[0] == "prelu" else None
    got = kernel(x, bias, relu=problem["relu"], isa=isa, threads=threads, added=added, ending=ending, slope=slope)
    offset = 0.0 if bias is None else bias[:, None, None].astype(np.float64)
    with np.errstate(invalid="ignore"):
        exact = convolve(x.astype(np.float64), weight.astype(np.float64), **geometry) + offset
        read, pads = (around(x, geometry["pads"]), (0,) * 4) if by_winograd else (np.abs(x), geometry["pads"])
        scale = convolve(read.astype(np.float64), np.abs(weight).astype(np.float64), **{**geometry, "pads": pads})
        scale = scale + np.abs(offset)
    if added is not None:
        exact, scale = exact + added, scale + np.abs(added)
    if ending is not None:
        exact = ended(exact, ending[0], ending[1] if slope is None else slope[:, None, None], ending[2])
        scale = 1.25 * scale  # no activation is steeper
    elif problem["relu"]:
        exact = np.where(exact < 0, 0, exact)
    assert got.shape == exact.shape
    assert np.array_equal(np.isnan(got), np.isnan(exact))
    finite = np.isfinite(exact)
    rest = ~finite & ~np.isnan(exact)
    if ending is None or ending[0] in ("clip", "leaky_relu", "prelu"):  # the others may have NaN for minus infinity
        assert np.array_equal(got[rest], exact[rest])
    assert np.all(np.abs(got[finite] - exact[finite]) <= 1e-5 * scale[finite] + 1e-30)


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=150, deadline=None)
@given(problem=problems(), threads=st.integers(1, 8))
def test_equal_to_the_dense_convolution(isa: str, problem: dict[str, Any], threads: int) -> None:
    check(problem, isa, threads)


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 2**32))
def test_what_is_not_finite_spreads_as_in_the_dense_convolution(isa: str, problem: dict[str, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x: Floats = problem["x"]
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.003] = value
    check(problem, isa)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("place", [(0, 0), (20, 11), (39, 39)])
def test_what_is_not_finite_spreads_where_few_outputs_read_a_large_image(isa: str, place: tuple[int, int]) -> None:
    """Most outputs that read it lie far before it."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 5, 5, 1)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.9] = 0
    x = rng.standard_normal((1, 5, 40, 40)).astype(np.float32)
    x[0, 2, place[0], place[1]] = np.inf
    geometry = {"group": 1, "stride": (1, 1), "dilation": (3, 1), "pads": (0,) * 4}
    check({"x": x, "weight": weight, "bias": None, "relu": False, "added": False, "geometry": geometry}, isa)


@pytest.mark.parametrize("isa", instruction_sets())
def test_more_outputs_than_16_bits_count(isa: str) -> None:
    weight = np.zeros((65540, 2, 1, 1), np.float32)
    weight[1, 0], weight[65537, 0] = 1, 2
    x = np.random.default_rng(0).standard_normal((1, 2, 23, 23)).astype(np.float32)
    got = Conv(weight)(x, isa=isa)[0]
    assert np.array_equal(got[[1, 65537]], [x[0, 0], 2 * x[0, 0]])
    assert np.flatnonzero(got.any(axis=(1, 2))).tolist() == [1, 65537]


@pytest.mark.parametrize("isa", instruction_sets())
def test_as_many_weights_of_an_output_as_16_bits_count(isa: str) -> None:
    rng = np.random.default_rng(0)
    problem = {
        "x": rng.standard_normal((1, 1, 279, 279)).astype(np.float32),
        "weight": rng.standard_normal((1, 1, 256, 256)).astype(np.float32), "bias": None, "relu": False, "added": False,
        "geometry": {"group": 1, "stride": (1, 1), "dilation": (1, 1), "pads": (0,) * 4},
    }  # fmt: skip
    check(problem, isa)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_images_of_which_nothing_is_finite(isa: str, value: float) -> None:
    weight = np.random.default_rng(0).standard_normal((9, 6, 3, 3)).astype(np.float32)
    weight[np.random.default_rng(1).random(weight.shape) < 0.5] = 0
    weight[1], weight[2] = 0, np.abs(weight[2]) + 1
    x = np.full((1, 6, 40, 40), value, np.float32)
    geometry = {"group": 1, "stride": (1, 1), "dilation": (1, 1), "pads": (0,) * 4}
    check({"x": x, "weight": weight, "bias": None, "relu": True, "added": False, "geometry": geometry}, isa, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (0, 1)}, "strides"), ({"stride": (1, 2**40)}, "strides"), ({"dilation": (1, 0)}, "kernels"),
        ({"pads": (0, -1, 0, 0)}, "pads"), ({"group": 0}, "group"), ({"group": 4}, "group"),
    ],
)  # fmt: skip
def test_geometries_that_cannot_be_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"must have .*{sentence}"):
        Conv(np.ones((6, 4, 3, 3), np.float32), **change)


@pytest.mark.parametrize("isa", instruction_sets())
def test_shapes_of_real_networks(isa: str) -> None:
    rng = np.random.default_rng(0)
    for channels, outputs, size, kernel, stride in [
        (3, 64, 45, 7, 2), (64, 64, 28, 3, 1), (64, 128, 28, 3, 2), (256, 64, 14, 1, 1), (256, 512, 14, 1, 2),
        (160, 160, 7, 3, 1), (192, 64, 1, 1, 1),
    ]:  # fmt: skip
        weight = rng.standard_normal((outputs, channels, kernel, kernel)).astype(np.float32)
        weight[rng.random(weight.shape) < 0.6] = 0
        pad = kernel // 2
        check(
            {
                "x": rng.standard_normal((1, channels, size, size)).astype(np.float32), "weight": weight,
                "bias": rng.standard_normal(outputs).astype(np.float32), "relu": True, "added": stride == 1,
                "geometry": {"group": 1, "stride": (stride, stride), "dilation": (1, 1), "pads": (pad,) * 4},
            },
            isa,
            2,
        )  # fmt: skip


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("group", "size", "kernel"), [(1, 40, 1), (2, 48, 1), (1, 43, 1), (1, 40, 3)])
def test_images_larger_than_a_cache_are_done_band_by_band(isa: str, group: int, size: int, kernel: int) -> None:
    """What the next band reads is fetched meanwhile; the last one has none behind it."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 260, kernel, kernel)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.97] = 0
    weight[1] = 0
    x = rng.standard_normal((2, 260 * group, size, size)).astype(np.float32)
    x[1, 7, size - 1, size - 1] = np.inf
    geometry = {"group": group, "stride": (1, 1), "dilation": (1, 1), "pads": (0,) * 4}
    problem = {"x": x, "weight": weight, "bias": None, "relu": True, "added": True, "geometry": geometry}
    for threads in (1, 3):
        check(problem, isa, threads)


@st.composite
def threes(draw: st.DrawFn) -> dict[str, Any]:
    """What Winograd's method can do."""
    problem = draw(problems())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    group, channels, rows = draw(st.sampled_from([1, 1, 2])), draw(st.integers(1, 20)), draw(st.integers(1, 70))
    size = [draw(st.integers(3, 40)) for _ in range(2)]
    weight = rng.standard_normal((group * rows, channels, 3, 3)).astype(np.float32)
    weight[rng.random(weight.shape) >= draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))] = 0
    bias = rng.standard_normal(group * rows).astype(np.float32) if draw(st.booleans()) else None
    geometry = {**problem["geometry"], "group": group, "stride": (1, 1), "dilation": (1, 1)}
    x = rng.standard_normal((draw(st.integers(0, 3)), group * channels, *size)).astype(np.float32)
    return {**problem, "x": x, "weight": weight, "bias": bias, "geometry": geometry, "wherever": True}


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=60, deadline=None)
@given(problem=threes(), threads=st.integers(1, 8))
def test_winograd_is_equal_to_the_dense_convolution(isa: str, problem: dict[str, Any], threads: int) -> None:
    check(problem, isa, threads)


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=30, deadline=None)
@given(problem=threes(), seed=st.integers(0, 2**32), value=st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
def test_winograd_spreads_what_is_not_finite_as_the_dense_convolution_does(
    isa: str, problem: dict[str, Any], seed: int, value: float
) -> None:
    """And what overflows only on its way does not."""
    x: Floats = problem["x"]
    x[np.random.default_rng(seed).random(x.shape) < 0.003] = value
    if value == 3e38:  # the sum of two is more than float32 holds; no result is
        problem["weight"] = np.clip(problem["weight"] * 1e-3, -1e-3, 1e-3)
        problem["ending"], problem["relu"] = None, False
    check(problem, isa)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "images"),
    [(64, 64, 33, 1), (40, 96, 7, 5), (33, 65, 14, 2), (48, 40, 60, 1), (700, 40, 10, 6), (520, 1300, 7, 16)],
)
def test_winograd_with_weights_of_real_sizes(isa: str, channels: int, outputs: int, size: int, images: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((outputs, channels, 3, 3)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.3] = 0
    x = rng.standard_normal((images, channels, size, size)).astype(np.float32)
    kernel = Conv(weight, pads=(1, 1, 1, 1))
    assert kernel.by_winograd(x, isa, wherever=True)
    some = [0, outputs // 2, outputs - 1]
    got = kernel(x, isa=isa, threads=2)[:, some]
    exact = convolve(x.astype(np.float64), weight[some].astype(np.float64), 1, (1, 1), (1, 1), (1,) * 4)
    assert np.abs(got - exact).max() <= 2e-6 * np.abs(exact).max()


def test_few_weights_are_skipped_rather_than_transformed() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    x = np.ones((1, 64, 56, 56), np.float32)
    for density, wanted in ((0.1, False), (0.2, False), (0.6, True), (1.0, True)):
        kept = np.where(np.random.default_rng(1).random(weight.shape) < density, weight, np.float32(0))
        assert Conv(kept, pads=(1,) * 4).by_winograd(x) is wanted
    for other in ({"stride": (2, 2)}, {"dilation": (2, 2)}):
        assert not Conv(weight, **other).by_winograd(x)  # type: ignore[arg-type]
    assert not Conv(np.ones((64, 64, 1, 3), np.float32)).by_winograd(x)
