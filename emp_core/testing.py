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

import decimal
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._bound import mass_lower_bound, mass_upper_bound
from ._errors import ArgumentError, EmpError
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
        min_dims: fewest axes, ≥ 0 (an array without axes is one score, so none is drawn where one is too few or too
            many).
        max_dims: most axes.

    Raises:
        ArgumentError: only arrays without axes are asked for, and not of one score.
    """
    st = _strategies()
    fewest = min_dims if min_size <= 1 <= max_size else max(min_dims, 1)
    if fewest > max_dims:
        raise ArgumentError(f"max_dims must be ≥ {fewest} for {min_size} to {max_size} scores, got {max_dims}")

    def build(draw: Any) -> NDArray[Any]:
        kind = np.dtype(draw(st.sampled_from(["float16", "float32", "float64"])) if dtype is None else dtype)
        dims = draw(st.integers(fewest, max_dims))
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
    return [abs(Fraction(x)) for x in _numbers(host).reshape(-1).tolist()]


def _numbers(host: NDArray[Any]) -> NDArray[Any]:
    """The same, but bfloat16 bits as the numbers that they stand for."""
    return (host["bfloat16"].astype(np.uint32) << 16).view(np.float32) if host.dtype == BFLOAT16 else host


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
    found = _whole(k, "keep count")
    assert found == expected, f"keep count is {found}, ⌊{beta}·N_eff⌋ is {expected}"


def assert_top_mask(values: Any, mask: Any, k: Any) -> None:
    """``mask`` keeps exactly the ``k`` largest magnitudes, ties to the lower index."""
    count = _whole(k, "k")
    found, expected = _mask(mask), exact_top_mask(values, count)
    assert found.shape == expected.shape, f"mask has shape {found.shape}, scores {expected.shape}"
    assert int(found.sum()) == count, f"mask keeps {int(found.sum())}, not {count}"
    wrong = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
    assert not wrong.size, f"mask differs from the {count} largest at flat indices {wrong[:8].tolist()}"


def assert_mass_within_bounds(values: Any, mask: Any) -> None:
    """The mass that ``mask`` retains lies within the tight bounds for its count: true of every mask of the k
    largest."""
    a, kept = _magnitudes(values), _mask(mask).reshape(-1).tolist()
    n, k, mass = len(a), sum(kept), _mass(a, kept)
    assert k, "mask keeps nothing, and a pool keeps at least one"
    size = float(exact_effective_size(values))
    lower, upper = mass_lower_bound(size, n=n, k=k), mass_upper_bound(size, n=n, k=k)
    assert lower <= mass + 1e-12, f"retained mass {mass} is below its bound {lower}: these are not the {k} largest"
    assert mass <= upper + 1e-12, f"retained mass {mass} is above its bound {upper}"


def assert_selection(selection: Selection, values: Any, *, sparsity: float | None = None) -> None:
    """Every figure of a one-pool selection agrees with rational arithmetic, to 1e-6 where figures are float32.

    Args:
        selection: what is tested.
        values: the scores it was made from.
        sparsity: the share that was asked for. A selection by sparsity does not hold it, so its count cannot be
            checked without.
    """
    a, mask = _magnitudes(values), _mask(selection.mask)
    n, k = _whole(selection.n, "n"), _whole(selection.k, "k")
    assert n == len(a), f"n is {n}, there are {len(a)} scores"
    near = 1e-6 if to_host(selection.n_eff).dtype == np.float32 else 1e-9
    exact = exact_effective_size(values)
    size = float(selection.n_eff)
    assert math.isclose(size, float(exact), rel_tol=near), f"n_eff is {size}, not {float(exact)}"
    if selection.beta is None:
        if sparsity is None:
            raise ArgumentError("sparsity must be given for a selection by sparsity, got None")
        expected = max(1, n - round(Fraction(sparsity) * n))
        assert k == expected, f"k is {k}, and {expected} of {n} stay for a sparsity of {sparsity}"
    elif selection.order == 2:
        assert_keep_count(values, k, beta=selection.beta)
    else:
        least, most = _order_counts(a, selection.beta, selection.order)
        assert least <= k <= most, f"k is {k}, ⌊{selection.beta}·D⌋ of order {selection.order} is {least}"
    assert_top_mask(values, mask, k)
    mass = _mass(a, mask.reshape(-1).tolist())
    assert abs(float(selection.mass) - mass) <= near, f"mass is {selection.mass}, not {mass}"
    lower, upper = float(selection.mass_lower), float(selection.mass_upper)
    ends = [min(max(float(exact) * (1 + e), 1.0), float(n)) for e in (near, -near)]  # bounds fall as n_eff grows
    for name, found, bound in (("mass_lower", lower, mass_lower_bound), ("mass_upper", upper, mass_upper_bound)):
        low, high = (bound(end, n=n, k=k) for end in ends)
        assert low - near <= found <= high + near, f"{name} is {found}, the bound is {bound(float(exact), n=n, k=k)}"
    if not any(a):  # of nothing all is retained, whatever is kept
        return
    room = near if near > 1e-9 else 0.0
    assert lower - room <= float(selection.mass) <= upper + room, (
        f"mass {selection.mass} lies outside [{lower}, {upper}]"
    )


def assert_scale_invariant(count: Any, values: NDArray[Any], factor: float) -> None:
    """``count(values)`` does not change when all scores are multiplied by a power of two.

    Where ``factor`` would take a score out of the range of float64, the law is tested with ``1/factor``; and where
    that would too, nothing is compared: such scores cannot be scaled.
    """
    assert abs(math.frexp(factor)[0]) == 0.5, "factor must be a power of two, so that scaling is exact"
    plain = np.asarray(values, np.float64)
    for power in (factor, 1 / factor):
        with np.errstate(all="ignore"):
            scaled = plain * power
            back = scaled / power
        if np.isfinite(scaled).all() and np.array_equal(back, plain):
            a, b = count(plain), count(scaled)
            assert np.array_equal(to_host(a), to_host(b)), f"changed from {a} to {b} under scaling by {power}"
            return


def assert_permutation_invariant(count: Any, values: NDArray[Any], order: Any) -> None:
    """``count(values)`` does not change when the scores are reordered."""
    flat, places = np.asarray(values).reshape(-1), np.asarray(order).reshape(-1)
    assert sorted(places.tolist()) == list(range(flat.size)), f"order must name each of {flat.size} scores once"
    a, b = count(values), count(flat[places.astype(np.intp)])
    assert np.array_equal(to_host(a), to_host(b)), f"changed from {a} to {b} under permutation"


def assert_kept_unchanged(before: Any, after: Any, mask: Any) -> None:
    """Pruning did only what it says: kept weights are the same bits, pruned ones are zero, of either sign."""
    a, b, keep = to_host(before), to_host(after), _mask(mask)
    assert a.shape == b.shape == keep.shape, f"shapes differ: {a.shape}, {b.shape}, mask {keep.shape}"
    assert a.dtype == b.dtype, f"dtype changed from {a.dtype} to {b.dtype}"
    assert a[keep].tobytes() == b[keep].tobytes(), "a kept weight changed"
    assert not np.any(_numbers(b[~keep])), "a pruned weight is not zero"


def _whole(number: Any, name: str) -> int:
    """One whole number, of whatever library or type; what is none fails, and is not cut to one."""
    found = to_host(number)
    assert found.size == 1, f"{name} must be one number, got {number!r}"
    assert found.dtype.kind in "iuf", f"{name} must be a whole number, got dtype {found.dtype}"
    value = found.reshape(-1)[0].item()
    assert float(value).is_integer(), f"{name} must be a whole number, got {value}"
    return int(value)


def _mask(mask: Any) -> NDArray[np.bool_]:
    """Booleans: 0 and 1 as integers would be taken for places."""
    found = to_host(mask)
    assert found.dtype == np.bool_, f"a mask is boolean, got {found.dtype}"
    return found


def _mass(a: list[Fraction], kept: list[bool]) -> float:
    """The share of Σ|s| that is kept; 1 where all are zero."""
    assert len(kept) == len(a), f"mask has {len(kept)} places, there are {len(a)} scores"
    total = sum(a)
    return float(sum(x for x, keep in zip(a, kept, strict=True) if keep) / total) if total else 1.0


def _order_counts(a: list[Fraction], beta: float, order: float) -> tuple[int, int]:
    """``⌊β·D⌋`` clamped to [1, n], and what a float32 that is rounded up may make of it."""
    if not any(a):
        return len(a), len(a)
    size = Fraction(beta) * _hill(a, order)
    least, most = (min(max(math.floor(size * scale), 1), len(a)) for scale in (1, 1 + Fraction(1, 1 << 18)))
    return least, least if order == 0 else most


def _hill(a: list[Fraction], order: float) -> Fraction:
    """The Hill number of any order but 2, in rational arithmetic or, where there are logarithms, to forty digits."""
    some, peak = [x for x in a if x], max(a)
    if order == 0:
        return Fraction(len(some))
    if math.isinf(order):
        return sum(some) / peak
    with decimal.localcontext() as context:
        context.prec, context.Emin, context.Emax = 80, decimal.MIN_EMIN, decimal.MAX_EMAX
        q = decimal.Decimal(order)
        shares = [decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator) for x in (x / peak for x in some)]
        total = sum(shares, start=decimal.Decimal(0))
        if order == 1:
            size = (total.ln() - sum((x * x.ln() for x in shares), start=decimal.Decimal(0)) / total).exp()
        else:
            terms = sum(((q * x.ln()).exp() for x in shares), start=decimal.Decimal(0))
            size = ((q * total.ln() - terms.ln()) / (q - 1)).exp()
        context.prec = 40  # what cancelled is cut off: equal scores give their number
        return Fraction(+size)
