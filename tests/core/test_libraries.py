"""Every array library gets the same answer, as its own array, on its own device."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import emp_core
from emp_core import Blocks, Groups, Labels, Moments, PoolError, Rows, criteria
from emp_core._namespace import Given, keep_subnormals
from emp_core.testing import exact_keep_count, exact_top_mask


def torch_cpu(a):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return torch.from_numpy(np.array(a))


def torch_cuda(a):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.from_numpy(np.array(a)).cuda()


def jax_array(a):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    return jax.device_put(a, jax.devices("cpu")[0])


def jax_gpu(a):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU that JAX sees")
    return jax.device_put(a, jax.devices("gpu")[0])


def cupy_array(a):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return cupy.asarray(a)


def strict_array(a):
    return pytest.importorskip("array_api_strict", reason="array-api-strict is not installed").asarray(a)


def strict_elsewhere(a):
    """On a device that is not the library's own first one: whatever is made there by default does not mix."""
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    return strict.asarray(a, device=strict.Device("device1"))


def tensorflow_array(a):
    return pytest.importorskip("tensorflow", reason="TensorFlow is not installed").constant(a)


LIBRARIES = [torch_cpu, torch_cuda, jax_array, jax_gpu, cupy_array, strict_array, strict_elsewhere, tensorflow_array]


@pytest.fixture(params=LIBRARIES, ids=lambda f: f.__name__)
def make(request):
    request.param(np.ones(1, np.float32))
    return request.param


def host(a):
    if hasattr(a, "detach"):
        a = a.detach().cpu()
    if hasattr(a, "get") and type(a).__module__.startswith("cupy"):
        a = a.get()
    try:
        return np.asarray(a)
    except RuntimeError:  # of another device
        return np.from_dlpack(a)


def arrays():
    r = np.random.default_rng(0)
    yield r.standard_normal((6, 8)).astype(np.float32)
    yield np.ones((4, 4), np.float32)
    yield np.zeros((3, 2), np.float32)
    yield r.integers(-3, 4, (5, 7)).astype(np.float32)
    yield r.standard_normal(150_000).astype(np.float32).reshape(3, -1)
    yield (r.standard_normal((20, 30)) * 1e-40).astype(np.float32)


def same_home(answer, given):
    assert type(answer).__module__.split(".")[0] == type(given).__module__.split(".")[0]
    if hasattr(given, "device"):
        assert answer.device == given.device


@pytest.mark.parametrize("a", list(arrays()), ids=lambda a: f"{a.shape}")
def test_functions(make, a):
    x = make(a)
    for axis in (None, 0, 1):
        for f in (
            lambda v, axis: emp_core.effective_size(v, axis=axis),
            lambda v, axis: emp_core.keep_count(v, beta=0.9, axis=axis),
            lambda v, axis: emp_core.hill_number(v, order=1, axis=axis),
            lambda v, axis: emp_core.top_mask(v, emp_core.keep_count(v, axis=axis), axis=axis),
            lambda v, axis: emp_core.retained_mass(v, emp_core.top_mask(v, 1, axis=axis), axis=axis),
        ):
            expected, found = f(a, axis), f(x, axis)
            same_home(found, x)
            assert host(found).shape == np.shape(expected)
            np.testing.assert_allclose(host(found), expected, rtol=1e-6 if "jax" in make.__name__ else 1e-12)
    assert Moments.of(x) == Moments.of(a)


@pytest.mark.parametrize(
    "scope", ["whole", "rows", "columns", Rows(1), Blocks((2, 3)), Groups(4), Groups(4, 2), "labels"], ids=str
)
def test_select(make, scope):
    for a in list(arrays())[:4]:
        scope_here = Labels(np.arange(a.size).reshape(a.shape) % 3) if scope == "labels" else scope
        expected, x = emp_core.select(a, scope=scope_here), make(a)
        found = emp_core.select(x, scope=scope_here)
        same_home(found.mask, x)
        for field in ("mask", "n", "k"):
            assert np.array_equal(host(getattr(found, field)), getattr(expected, field)), field
        for field in ("n_eff", "mass", "mass_lower", "mass_upper"):
            np.testing.assert_allclose(host(getattr(found, field)), getattr(expected, field), rtol=1e-6)


def test_model_scope(make):
    r = np.random.default_rng(0)
    named = {"a": r.standard_normal((4, 5)).astype(np.float32), "b": r.standard_normal(90_000).astype(np.float32)}
    expected = emp_core.select(named, scope="model")
    found = emp_core.select({k: make(v) for k, v in named.items()}, scope="model")
    assert int(found.k) == expected.k
    for name in named:
        same_home(found.mask[name], make(named[name]))
        assert np.array_equal(host(found.mask[name]), expected.mask[name])


def test_where_and_errors(make):
    a = np.array([[1.0, 5.0, 2.0], [3.0, 1.0, 1.0]], np.float32)
    where = a != 5
    assert np.array_equal(host(emp_core.select(make(a), where=make(where)).mask), emp_core.select(a, where=where).mask)
    a[1, 1] = np.nan
    with pytest.raises(PoolError, match="must be finite"):
        emp_core.keep_count(make(a))
    with pytest.raises(PoolError, match="empty pool"):
        emp_core.effective_size(make(np.ones((2, 0), np.float32)))


def test_criteria(make):
    w, x = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32), np.array([10.0, 1.0], np.float32)
    for found, expected in (
        (criteria.magnitude(make(w)), criteria.magnitude(w)),
        (criteria.squared(make(w)), criteria.squared(w)),
        (criteria.gradient(make(w), make(w)), criteria.gradient(w, w)),
        (criteria.wanda(make(w), make(x)), criteria.wanda(w, x)),
    ):
        same_home(found, make(w))
        assert np.array_equal(host(found), expected)


def test_bounds_on_arrays(make):
    v, k = np.array([2.5, 3.0]), np.array([2, 1])
    if make in (jax_array, jax_gpu):
        v = v.astype(np.float32)
    for bound in (emp_core.mass_lower_bound, emp_core.mass_upper_bound):
        found = bound(make(v), n=4, k=make(k))
        same_home(found, make(v))
        np.testing.assert_allclose(
            host(found), bound(v, n=4, k=k), rtol=1e-5 if make in (jax_array, jax_gpu) else 1e-14
        )


def test_subnormals_are_kept_where_a_library_would_flush_them():
    """With NumPy in the place of CuPy, which does not run here."""
    r = np.random.default_rng(0)
    tiny = np.array([0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, -1.1754942e-38], np.float32)
    a = np.concatenate([tiny, r.standard_normal(500).astype(np.float32) * np.float32(1e-38), [np.inf, -np.inf, np.nan]])
    for one in (a.astype(np.float32), a.astype(np.float32)[::-3], a.astype(np.float32)[:500].reshape(20, 25).T):
        kept = keep_subnormals(np, one)
        assert kept.dtype == np.float64
        assert np.array_equal(kept, one.astype(np.float64), equal_nan=True)
        assert np.array_equal(np.signbit(kept), np.signbit(one))
    for plain in (r.standard_normal(50).astype(np.float32), np.zeros((2, 3), np.float32), np.ones(0, np.float32)):
        assert keep_subnormals(np, plain) is plain
    smallest = np.array([1.1754944e-38, 3e38, np.inf, 0], np.float32)
    assert keep_subnormals(np, smallest) is smallest


def numpy_as_a_device(a):
    """NumPy's functions and dtypes on the road for devices, as CuPy has them."""
    return Given(np.asarray(a), pytest.importorskip("array_api_compat.numpy"), None, np.asarray)


@pytest.mark.parametrize("make", [strict_array, strict_elsewhere, numpy_as_a_device], ids=lambda f: f.__name__)
def test_the_road_for_devices_is_exact_too(make):
    """It decides on the same rationals, also where float64 sums mislead, or float32 would lose all."""
    for s in (
        [0.1] * 10, [1.0, 1.0 + 2.0**-52], [1.0, 1.0, 2.0**-1000], [1.7e308] * 7, [5e-324] * 3, [1e308, 5e-324],
        [1e-60, 3e-60],
    ):  # fmt: skip
        a = np.array(s)
        assert int(host(emp_core.keep_count(make(a)))) == emp_core.keep_count(s)
        assert float(host(emp_core.effective_size(make(a)))) == emp_core.effective_size(s)
        assert np.array_equal(host(emp_core.select(make(a)).mask), emp_core.select(a).mask)
        assert Moments.of(make(a)) == Moments.of(a)
    flat = np.full(200_000, 0.1)
    assert int(host(emp_core.keep_count(make(flat)))) == 200_000


EDGE = 1 << 53  # the last integer before which float64 has them all
LONG = [np.asarray, strict_array, strict_elsewhere, numpy_as_a_device, lambda a: on_device(torch_cpu(a))]


@pytest.mark.parametrize("make", LONG, ids=["numpy", "strict", "elsewhere", "numpy as a device", "torch as a device"])
@given(data=st.data())
def test_large_integers_are_counted_exactly_or_refused(make, data):
    """Never rounded on the way: of 2**53 and 2**53 + 1 one stays, and not two."""
    kind = data.draw(st.sampled_from([np.int64, np.uint64] if make is not LONG[-1] else [np.int64]))
    info = np.iinfo(kind)
    near = st.integers(EDGE - 2, EDGE + 2)
    if info.min:
        near = st.one_of(near, near.map(lambda v: -v))
    value = st.one_of(near, st.integers(0, 3), st.sampled_from([info.min, info.max, EDGE // 3]))
    pool = data.draw(st.lists(value, min_size=2, max_size=8))
    a, where = np.array(pool, kind), np.array([v in range(-EDGE, EDGE + 1) for v in pool])
    if where.all():
        assert int(host(emp_core.keep_count(make(a)))) == exact_keep_count(a)
        assert np.array_equal(host(emp_core.select(make(a)).mask), exact_top_mask(a, exact_keep_count(a)))
        return
    refused = [
        lambda: emp_core.keep_count(make(a)),
        lambda: emp_core.effective_size(make(a)),
        lambda: emp_core.hill_number(make(a), order=1),
        lambda: emp_core.top_mask(make(a), 1),
        lambda: Moments.of(make(a)),
        lambda: emp_core.select(make(np.stack([np.ones_like(a), a])), scope="rows"),
        lambda: emp_core.select({"scores": make(a), "b": make(a[:1])}, scope="model"),
    ]
    for call in refused:
        with pytest.raises(emp_core.ArgumentError, match=r"integer .*scores must be within ±2\*\*53, got -?\d+$"):
            call()
    if where.any():  # what is not in the pool is not looked at
        assert int(host(emp_core.keep_count(make(a), where=where))) == exact_keep_count(a[where])


@pytest.mark.parametrize("make", LONG[:2], ids=["numpy", "strict"])
def test_large_integers_in_long_pools(make):
    a = np.full(100_000, EDGE)
    assert int(host(emp_core.keep_count(make(a)))) == a.size
    a[77_777] += 1
    for call in (emp_core.keep_count, Moments.of, lambda x: emp_core.select(x, sparsity=0.5)):
        with pytest.raises(emp_core.ArgumentError, match=r"within ±2\*\*53, got 9007199254740993$"):
            call(make(a))


def test_bfloat16_everywhere():
    a = np.random.default_rng(0).standard_normal(5000).astype(ml_dtypes.bfloat16)
    expected = emp_core.select(a.astype(np.float32))
    assert emp_core.select(a).k == expected.k
    assert np.array_equal(emp_core.select(a).mask, expected.mask)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    t = torch.from_numpy(a.astype(np.float32)).bfloat16()
    assert np.array_equal(emp_core.select(t).mask.numpy(), expected.mask)
    assert np.array_equal(
        emp_core.select(t.reshape(50, 100), scope="rows").mask.numpy(),
        emp_core.select(a.reshape(50, 100), scope="rows").mask,
    )
    assert int(emp_core.keep_count(torch.tensor(2.0).bfloat16())) == 1


def test_torch_details():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w = torch.nn.Linear(20, 30).weight
    chosen = emp_core.select(w)
    assert chosen.mask.dtype == torch.bool
    assert chosen.mask.shape == w.shape
    assert int(emp_core.keep_count(w.T)) == int(chosen.k)
    with pytest.raises(emp_core.ArgumentError, match="dense tensor"):
        emp_core.effective_size(torch.eye(3).to_sparse())
    with pytest.raises(emp_core.ArgumentError, match="real numbers"):
        emp_core.effective_size(torch.ones(3, dtype=torch.complex64))


def test_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    for a in list(arrays())[:5]:  # without the subnormal one: XLA flushes subnormals to zero
        x = jax.numpy.asarray(a)
        for scope, axis in (("whole", None), ("rows", 1)):
            expected = emp_core.select(a, scope=scope, beta=0.9)

            @jax.jit
            def chosen(v, scope=scope):
                s = emp_core.select(v, scope=scope, beta=0.9)
                return s.mask, s.k, s.n_eff, s.mass, s.mass_lower, s.mass_upper

            mask, k, n_eff, mass, lower, upper = chosen(x)
            assert np.array_equal(host(mask), expected.mask)
            assert np.array_equal(host(k), expected.k)
            for found, value in ((n_eff, expected.n_eff), (mass, expected.mass), (upper, expected.mass_upper)):
                np.testing.assert_allclose(host(found), value, rtol=2e-3 if value is expected.mass_upper else 1e-4)
            assert (host(lower) <= host(mass) + 1e-5).all()
            count = jax.jit(lambda v, axis=axis: emp_core.keep_count(v, axis=axis))(x)
            assert np.array_equal(host(count), emp_core.keep_count(a, axis=axis))
    x = jax.numpy.asarray(next(iter(arrays())))
    assert math.isclose(
        float(jax.jit(lambda v: emp_core.hill_number(v, order=1))(x)),
        emp_core.hill_number(np.asarray(x), order=1),
        rel_tol=1e-5,
    )
    traced_k = jax.jit(emp_core.top_mask)(x, 5)
    assert np.array_equal(host(traced_k), emp_core.top_mask(np.asarray(x), 5))
    with pytest.raises(emp_core.ArgumentError, match=r"scope must be whole, rows or columns under jax\.jit"):
        jax.jit(lambda v: emp_core.select(v, scope=Groups(4)).mask)(x)


def test_no_copy_on_the_host():
    """PyTorch and JAX on the CPU are looked at in place."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from emp_core._namespace import given

    t = torch.arange(6.0)
    assert np.shares_memory(given(t).host, t.numpy())
    pytest.importorskip("jax", reason="JAX is not installed")
    x = jax_array(np.arange(1000, dtype=np.float32))
    assert given(x).host.ctypes.data == np.asarray(x).ctypes.data


def on_device(x):
    """The same array, as if the host could not read it: what CUDA tensors and arrays on other devices go through."""
    from emp_core._namespace import Given, namespace

    if "array_api_strict" in type(x).__module__:  # the host is not to look into these anyway
        return x
    if "jax" in type(x).__module__:
        import jax

        return Given(x, jax.numpy, None, jax.numpy.asarray)
    return Given(x, namespace(x), None, given_back(x))


def given_back(x):
    import torch

    return lambda a: torch.from_numpy(np.array(a))


@pytest.mark.parametrize("make", [torch_cpu, jax_array], ids=lambda f: f.__name__)
@pytest.mark.parametrize("scope", ["whole", "rows", Blocks((2, 3)), Groups(4), "labels"], ids=str)
def test_the_road_for_devices(make, scope):
    some = list(arrays())[:5]
    if make is jax_array:  # each new shape of each operation is compiled: seconds
        if not isinstance(scope, str) or scope == "labels":
            pytest.skip("too slow for what it would add")
        some = [some[3]]
    for a in some:
        scope_here = Labels(np.arange(a.size).reshape(a.shape) % 3) if scope == "labels" else scope
        if a.size > 10_000 and not isinstance(scope, str):
            continue
        for beta, where in ((1.0, None), (0.4, a != a.flat[0])):
            if where is not None and not where.any(axis=-1).all():
                continue
            if where is not None and isinstance(scope, (Blocks, Groups)):
                continue
            expected = emp_core.select(a, scope=scope_here, beta=beta, where=where)
            x = on_device(make(a))
            found = emp_core.select(x, scope=scope_here, beta=beta, where=None if where is None else make(where))
            for field in ("mask", "n", "k"):
                assert np.array_equal(host(getattr(found, field)), getattr(expected, field)), field
            for field in ("n_eff", "mass", "mass_lower", "mass_upper"):
                np.testing.assert_allclose(host(getattr(found, field)), getattr(expected, field), rtol=1e-6)
            same_home(found.mask, make(a))
        for q in (0, 1, 3) if scope == "whole" else ():
            np.testing.assert_allclose(
                host(emp_core.hill_number(x, order=q)), emp_core.hill_number(a, order=q), rtol=1e-6
            )
        assert Moments.of(x) == Moments.of(a)


@pytest.mark.parametrize("make", [torch_cpu, jax_array], ids=lambda f: f.__name__)
def test_the_road_for_devices_counts_exactly(make):
    for s in ([0.1] * 10, [1.0, 1.0 + 2.0**-20], [3.0, 1.0, 1.0, 1.0], [1e38] * 7, [0.0, 0.0]):
        x = make(np.array(s, np.float32))
        assert int(emp_core.keep_count(on_device(x))) == emp_core.keep_count(np.array(s, np.float32))
    flat = np.full(200_000, 0.1, np.float32)
    assert int(emp_core.keep_count(on_device(make(flat)))) == 200_000
    with pytest.raises(PoolError, match="must be finite"):
        emp_core.keep_count(on_device(make(np.array([1.0, np.nan], np.float32))))


@pytest.mark.parametrize("make", [torch_cpu, jax_array, strict_array], ids=lambda f: f.__name__)
def test_a_long_pool_on_a_device_in_pieces(make, monkeypatch):
    """Pieces of a few scores, no room for what lies near the threshold: the same masks, ties and errors included."""
    from emp_core import _device

    r = np.random.default_rng(0)
    cases = {
        "gaussian": r.standard_normal(70_001).astype(np.float32),
        "ties": r.integers(-3, 4, 70_001).astype(np.float32),
        "equal": np.ones(70_001, np.float32),
        "zeros but one": np.eye(1, 70_001, dtype=np.float32)[0],
        "wide": (r.standard_normal(70_001) * 10.0 ** r.integers(-30, 15, 70_001)).astype(np.float32),
    }
    if make is jax_array:  # every piece of another length is compiled: seconds
        cases = {"ties": cases["ties"]}
    else:
        monkeypatch.setattr(_device, "PIECE", 1 << 14)
    for room in (1 << 22, 16):
        monkeypatch.setattr(_device, "ROOM", room)
        for name, a in cases.items():
            for where in (None, r.random(a.size) < 0.7) if make is torch_cpu else (None,):
                expected = emp_core.select(a, where=where)
                found = emp_core.select(on_device(make(a)), where=None if where is None else make(where))
                assert np.array_equal(host(found.mask), expected.mask), name
                assert (int(found.n), int(found.k)) == (expected.n, expected.k)
                assert math.isclose(float(found.n_eff), expected.n_eff, rel_tol=1e-6)
                assert math.isclose(float(found.mass), expected.mass, rel_tol=1e-6)
            for k in (0, 1, a.size // 3, a.size) if make is not jax_array else ():
                found = emp_core.top_mask(on_device(make(a)), k)
                if k == a.size:
                    assert float(emp_core.select(on_device(make(a)), beta=1e9).mass) == 1
                assert np.array_equal(host(found), emp_core.top_mask(a, k)), (name, k)


@pytest.mark.parametrize("make", [torch_cpu, jax_array, strict_array], ids=lambda f: f.__name__)
def test_a_model_on_a_device(make):
    r = np.random.default_rng(1)
    named = {
        "a": r.standard_normal((40, 50)).astype(np.float32), "b": np.round(r.standard_normal(900) * 4) / 4,
        "none": np.empty((0, 3), np.float32),
    }  # fmt: skip
    if make is jax_array:
        named = {n: a.astype(np.float32) for n, a in named.items()}
    where = {"a": named["a"] > -1}
    for inside, order in ((None, 2), (where, 2), (where, 1)):
        expected = emp_core.select(named, scope="model", order=order, where=inside)
        found = emp_core.select(
            {n: on_device(make(a)) for n, a in named.items()},
            scope="model",
            order=order,
            where=None if inside is None else {n: make(w) for n, w in inside.items()},
        )
        assert int(found.k) == expected.k
        assert all(np.array_equal(host(found.mask[n]), expected.mask[n]) for n in named)
        assert all(host(found.mask[n]).shape == named[n].shape for n in named)
    named["a"][3, 3] = np.nan
    with pytest.raises(PoolError, match="a must be finite"):
        emp_core.select({n: on_device(make(a)) for n, a in named.items()}, scope="model")


def test_float64_is_not_narrow_where_there_is_no_bfloat16():
    """As in CuPy, whose types are NumPy's; and NumPy says that float64 equals None."""
    from types import SimpleNamespace

    from emp_core._namespace import is_narrow

    library = SimpleNamespace(float32=np.float32, float16=np.float16, float64=np.float64)
    assert [is_narrow(library, np.dtype(t)) for t in ("float16", "float32", "float64")] == [True, True, False]
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    assert [is_narrow(torch, t) for t in (torch.bfloat16, torch.float32, torch.float64)] == [True, True, False]
