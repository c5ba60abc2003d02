"""Hypothesis strategies and assertions for test suites that count, mask or prune.

Needs hypothesis (``pip install 'effective-pruning[test]'``); it is imported when a strategy is made, not before.

The strategies draw what breaks naive code: ties everywhere, near-equal scores, spikes, zeros with signs, subnormals,
magnitudes whose squares overflow. The assertions compare with rational arithmetic, slow and obvious.

>>> from hypothesis import given, settings
>>> from emp_core import keep_count, top_mask
>>> from emp_core.testing import assert_keep_count, assert_top_mask, scores
>>> @settings(max_examples=20, database=None)
... @given(scores())
... def test_my_pruner(s):
...     k = keep_count(s)
...     assert_keep_count(s, k)
...     assert_top_mask(s, top_mask(s, k), k)
>>> test_my_pruner()
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._bound import mass_lower_bound, mass_upper_bound
from ._errors import EmpError
from ._namespace import BFLOAT16, given, to_host
from ._select import Selection

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "assert_keep_count",
    "assert_kept_unchanged",
    "assert_mass_within_bounds",
    "assert_permutation_invariant",
    "assert_scale_invariant",
    "assert_selection",
    "assert_top_mask",
    "betas",
    "exact_effective_size",
    "exact_keep_count",
    "exact_top_mask",
    "scores",
    "weight_tensors",
]


def _strategies() -> Any:
    try:
        from hypothesis import strategies
    except ImportError as e:
        raise EmpError("emp_core.testing needs hypothesis: pip install 'effective-pruning[test]'") from e
    return strategies


def scores(
    *, min_size: int = 1, max_size: int = 64, dtype: Any = None, min_dims: int = 1, max_dims: int = 1
) -> SearchStrategy[NDArray[Any]]:
    """Arrays of finite scores, of the kinds on which counts go wrong.

    Args:
        min_size: fewest scores, ≥ 0.
        max_size: most scores.
        dtype: float16, float32 or float64; None draws one.
        min_dims: fewest axes, ≥ 0 (an array without axes is one score).
        max_dims: most axes.
    """
    st = _strategies()

    def build(draw: Any) -> NDArray[Any]:
        kind = np.dtype(draw(st.sampled_from(["float16", "float32", "float64"])) if dtype is None else dtype)
        dims = draw(st.integers(min_dims, max_dims))
        size = draw(st.integers(min_size, max_size))
        shape = _shape(draw, st, size, dims)
        n = math.prod(shape)
        top = float(np.finfo(kind).max)
        any_value = st.floats(-top, top, width=8 * kind.itemsize, allow_subnormal=True)
        flavour = draw(st.sampled_from(["any", "ties", "flat", "nearly flat", "spike", "zeros", "wide", "bell"]))
        if flavour == "any":
            values = draw(st.lists(any_value, min_size=n, max_size=n))
        elif flavour == "ties":
            few = draw(st.lists(any_value, min_size=1, max_size=3))
            values = draw(st.lists(st.sampled_from(few), min_size=n, max_size=n))
        elif flavour == "flat":
            values = [draw(any_value)] * n
        elif flavour == "nearly flat":
            base = np.array(draw(any_value), kind)
            steps = draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n))
            bits = base.view(f"i{kind.itemsize}") + np.array(steps, f"i{kind.itemsize}")
            near = bits.astype(f"i{kind.itemsize}").view(kind)
            values = np.where(np.isfinite(near), near, base).tolist()
        elif flavour == "spike":
            values = [0.0] * n
            if n:
                values[draw(st.integers(0, n - 1))] = draw(any_value)
        elif flavour == "zeros":
            values = draw(st.lists(st.sampled_from([0.0, -0.0]), min_size=n, max_size=n))
        elif flavour == "wide":
            low, high = np.finfo(kind).minexp - np.finfo(kind).nmant, np.finfo(kind).maxexp - 1
            exponents = draw(st.lists(st.integers(int(low), int(high)), min_size=n, max_size=n))
            values = [math.ldexp(1.0, e) for e in exponents]
        else:
            values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(n).tolist()
        return np.array(values, kind).reshape(shape)

    strategy: SearchStrategy[NDArray[Any]] = st.composite(build)()
    return strategy


def weight_tensors(*, max_side: int = 8, dtype: Any = None) -> SearchStrategy[NDArray[Any]]:
    """Weights shaped as layers have them: 2-D (dense), 3-D (recurrent, 1-D convolution), 4-D and 5-D (convolution).

    Memory layouts vary too: C order, Fortran order, strided views, read-only.
    """
    st = _strategies()

    def build(draw: Any) -> NDArray[Any]:
        dims = draw(st.integers(2, 5))
        sides = draw(st.lists(st.integers(1, max_side if dims < 4 else 3), min_size=dims, max_size=dims))
        flat = draw(scores(min_size=math.prod(sides), max_size=math.prod(sides), dtype=dtype))
        tensor: NDArray[Any] = flat.reshape(sides)
        layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only"]))
        if layout == "F":
            tensor = np.asfortranarray(tensor)
        elif layout == "strided":
            tensor = np.repeat(tensor, 2, axis=-1)[..., ::2]
        elif layout == "reversed":
            tensor = tensor[::-1].copy()[::-1]
        elif layout == "read-only":
            tensor = tensor.copy()
            tensor.flags.writeable = False
        return tensor

    strategy: SearchStrategy[NDArray[Any]] = st.composite(build)()
    return strategy


def betas(scores: Any = None, /, *, max_value: float = 4.0) -> SearchStrategy[float]:
    """Multipliers of the effective size: ordinary ones, 1 and its neighbours; and of given scores those for which
    ``β·N_eff`` falls on an integer or beside it, as near as a double can be.

    Args:
        scores: one pool, finite, whose counts are to be tested. Without it nothing is known of ``N_eff``, and a
            ``β·N_eff`` beside an integer comes about where scores are equal, and hardly anywhere else.
        max_value: the largest that is drawn, but for a few ordinary ones up to 1.25.

    >>> from hypothesis import given, settings
    >>> from hypothesis import strategies as st
    >>> from emp_core import keep_count
    >>> from emp_core.testing import assert_keep_count, betas, scores
    >>> @settings(max_examples=20, database=None)
    ... @given(scores().flatmap(lambda s: st.tuples(st.just(s), betas(s))))
    ... def test_my_count(case):
    ...     s, beta = case
    ...     assert_keep_count(s, keep_count(s, beta=beta), beta=beta)
    >>> test_my_count()
    """
    st = _strategies()
    strategy: SearchStrategy[float] = st.one_of(
        st.just(1.0),
        st.sampled_from([0.5, 0.75, 1.25, 1 / 3, math.nextafter(1.0, 0), math.nextafter(1.0, 2)]),
        st.floats(min(1e-6, max_value), max_value),
    )
    size = Fraction(0) if scores is None else exact_effective_size(scores)
    most = math.floor(Fraction(max_value) * size)
    if most < 1:
        return strategy

    def beside(integer: int, side: float) -> float:
        on = integer / size  # rounded: β·N_eff is just above or just below, or on it
        nearest = on.numerator / on.denominator
        return math.nextafter(nearest, nearest * side) if side != 1 else nearest

    boundary: SearchStrategy[float] = st.builds(beside, st.integers(1, most), st.sampled_from([1.0, 0.0, math.inf]))
    both: SearchStrategy[float] = st.one_of(boundary, strategy)
    return both


def _shape(draw: Any, st: Any, size: int, dims: int) -> tuple[int, ...]:
    if dims == 0:
        return ()
    shape = []
    for _ in range(dims - 1):
        divisors = [d for d in range(1, size + 1) if size % d == 0] or [1]
        d = draw(st.sampled_from(divisors))
        shape.append(d)
        size //= d
    return (*shape, size)


def _magnitudes(values: Any) -> list[Fraction]:
    source = given(values)
    host = source.host if source.host is not None else to_host(source.array)
    if host.dtype == BFLOAT16:
        host = (host.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return [abs(Fraction(x)) for x in host.reshape(-1).tolist()]


def exact_effective_size(values: Any) -> Fraction:
    """``(Σ|s|)²/Σs²`` in rational arithmetic; n when all are zero."""
    a = _magnitudes(values)
    squares = sum(x * x for x in a)
    return sum(a) ** 2 / squares if squares else Fraction(len(a))


def exact_keep_count(values: Any, beta: float = 1.0) -> int:
    """``⌊β·N_eff⌋`` in rational arithmetic, clamped to [1, n]; n when all scores are zero."""
    a = _magnitudes(values)
    if not any(a):
        return len(a)
    return min(max(math.floor(Fraction(beta) * exact_effective_size(values)), 1), len(a))


def exact_top_mask(values: Any, k: int) -> NDArray[np.bool_]:
    """The k largest magnitudes, ties to the lower flat index, by sorting."""
    a = _magnitudes(values)
    mask = np.zeros(len(a), bool)
    mask[sorted(range(len(a)), key=lambda i: (-a[i], i))[:k]] = True
    return mask.reshape(given(values).shape)


def assert_keep_count(values: Any, k: Any, *, beta: float = 1.0) -> None:
    """``k`` is the exact keep count of ``values`` taken as one pool."""
    expected = exact_keep_count(values, beta)
    assert int(k) == expected, f"keep count is {int(k)}, ⌊{beta}·N_eff⌋ is {expected}"


def assert_top_mask(values: Any, mask: Any, k: Any) -> None:
    """``mask`` keeps exactly the ``k`` largest magnitudes, ties to the lower index."""
    found, expected = to_host(mask), exact_top_mask(values, int(k))
    assert found.dtype == np.bool_, f"a mask is boolean, got {found.dtype}"
    assert found.shape == expected.shape, f"mask has shape {found.shape}, scores {expected.shape}"
    assert int(found.sum()) == int(k), f"mask keeps {int(found.sum())}, not {int(k)}"
    wrong = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
    assert not wrong.size, f"mask differs from the {int(k)} largest at flat indices {wrong[:8].tolist()}"


def assert_mass_within_bounds(values: Any, mask: Any) -> None:
    """The mass that ``mask`` retains lies within the tight bounds for its count: true of every mask of the k
    largest."""
    a = _magnitudes(values)
    kept = to_host(mask).reshape(-1).tolist()
    total, n, k = sum(a), len(a), sum(map(bool, kept))
    mass = float(sum(x for x, keep in zip(a, kept, strict=True) if keep) / total) if total else 1.0
    size = float(exact_effective_size(values))
    lower, upper = mass_lower_bound(size, n=n, k=k), mass_upper_bound(size, n=n, k=k)
    assert lower <= mass + 1e-12, f"retained mass {mass} is below its bound {lower}: these are not the {k} largest"
    assert mass <= upper + 1e-12, f"retained mass {mass} is above its bound {upper}"


def assert_selection(selection: Selection, values: Any) -> None:
    """Every figure of a one-pool selection agrees with rational arithmetic."""
    a = _magnitudes(values)
    mask = to_host(selection.mask)
    k = int(selection.k)
    assert int(selection.n) == len(a), f"n is {selection.n}, there are {len(a)} scores"
    size = float(exact_effective_size(values))
    assert math.isclose(float(selection.n_eff), size, rel_tol=1e-6), f"n_eff is {selection.n_eff}, not {size}"
    if selection.beta is not None and selection.order == 2:
        assert_keep_count(values, k, beta=selection.beta)
    assert_top_mask(values, mask, k)
    total = sum(a)
    mass = float(sum(x for x, keep in zip(a, mask.reshape(-1).tolist(), strict=True) if keep) / total) if total else 1.0
    assert abs(float(selection.mass) - mass) <= 1e-6, f"mass is {selection.mass}, not {mass}"
    lower, upper = float(selection.mass_lower), float(selection.mass_upper)
    assert lower <= float(selection.mass) <= upper, f"mass {selection.mass} lies outside [{lower}, {upper}]"


def assert_scale_invariant(count: Any, values: NDArray[Any], factor: float) -> None:
    """``count(values)`` does not change when all scores are multiplied by a power of two."""
    assert abs(math.frexp(factor)[0]) == 0.5, "factor must be a power of two, so that scaling is exact"
    wide = np.asarray(values, np.float64)
    a, b = count(wide), count(wide * factor)
    assert np.array_equal(to_host(a), to_host(b)), f"changed from {a} to {b} under scaling by {factor}"


def assert_permutation_invariant(count: Any, values: NDArray[Any], order: Any) -> None:
    """``count(values)`` does not change when the scores are reordered."""
    a, b = count(values), count(np.asarray(values).reshape(-1)[np.asarray(order)])
    assert np.array_equal(to_host(a), to_host(b)), f"changed from {a} to {b} under permutation"


def assert_kept_unchanged(before: Any, after: Any, mask: Any) -> None:
    """Pruning did only what it says: kept weights are the same bits, pruned ones are zero."""
    a, b, keep = to_host(before), to_host(after), to_host(mask)
    assert a.shape == b.shape == keep.shape, f"shapes differ: {a.shape}, {b.shape}, mask {keep.shape}"
    assert a.dtype == b.dtype, f"dtype changed from {a.dtype} to {b.dtype}"
    assert a[keep].tobytes() == b[keep].tobytes(), "a kept weight changed"
    assert not np.any(b[~keep]), "a pruned weight is not zero"
