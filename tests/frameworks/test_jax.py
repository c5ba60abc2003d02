"""emp_jax: trees, masks of the core, and training with optax under jit."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")

import jax.numpy as jnp  # noqa: E402

import emp_core  # noqa: E402
import emp_jax  # noqa: E402
from tests.frameworks.wrong_ramps import WRONG  # noqa: E402


def tree(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "dense": {"kernel": jax.random.normal(keys[0], (10, 16)), "bias": jnp.ones(16)},
        "out": [{"kernel": jax.random.normal(keys[1], (16, 3))}],
        "token_embedding": jax.random.normal(keys[2], (7, 4)),
        "steps": jnp.zeros((2, 2), jnp.int32),
    }


NAMES = ["dense.kernel", "out.0.kernel"]


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_what_is_kept_is_what_the_core_selects(scope):
    params = tree()
    assert list(emp_jax.find_weights(params)) == NAMES
    pruned, made, carried = emp_jax.prune(params, scope=scope)
    named = {n: np.asarray(a) for n, a in emp_jax.find_weights(params).items()}
    if scope == "model":
        masks = emp_core.select(named, scope="model").mask
    else:
        masks = {n: emp_core.select(a, scope="columns" if scope == "row" else "whole").mask for n, a in named.items()}
    for name, a in emp_jax.find_weights(pruned).items():
        assert np.array_equal(np.asarray(a), np.where(masks[name], named[name], 0))
    assert jax.tree.structure(pruned) == jax.tree.structure(params)
    assert np.array_equal(pruned["token_embedding"], params["token_embedding"])
    again = type(made).from_json(made.to_json())
    assert again == made
    other, certificate = emp_jax.apply(params, again)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), other, pruned))
    assert carried == certificate
    assert emp_jax.verify(pruned, certificate) == ()
    assert emp_jax.verify(params, certificate)
    with pytest.raises(emp_core.ArgumentError, match="made from other values"):
        emp_jax.apply(pruned, made)
    with pytest.raises(emp_core.ArgumentError, match="must hold something to prune"):
        emp_jax.plan({"b": jnp.ones(3)})


def test_leaves_of_numpy_stay_what_they_are():
    r = np.random.default_rng(0)
    params = {
        "w": r.standard_normal((8, 4)), "half": r.standard_normal((8, 4)).astype(jnp.bfloat16),
        "device": jax.random.normal(jax.random.key(0), (8, 4)), "steps": np.array([2**40, 5]),
        "bias": np.array([1 / 3]), "rate": 0.1, "act": jax.nn.relu, "name": "relu", "key": jax.random.key(0),
        "type": jnp.float32,
    }  # fmt: skip
    pruned, made, certificate = emp_jax.prune(params)
    assert [e.name for e in made.entries] == ["device", "half", "w"]
    for name in made.masks:
        assert type(pruned[name]) is type(params[name])
        assert pruned[name].dtype == params[name].dtype
        assert np.array_equal(pruned[name], np.where(np.asarray(made.masks[name]), params[name], 0))
    assert all(pruned[name] is leaf for name, leaf in params.items() if name not in made.masks)
    assert emp_jax.verify(pruned, certificate) == ()
    kept = emp_jax.masks(params, made)
    assert jax.tree.structure(kept) == jax.tree.structure(params)
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("other", [(8, 4), (4,)])
def test_weights_of_one_name_are_refused(other):
    w = jax.random.normal(jax.random.key(0), (8, 4))
    made = emp_jax.plan({"a.b": w})
    params = {"a.b": w, "a": {"b": jnp.ones(other)}}
    for f in (emp_jax.prune, emp_jax.find_weights, lambda p: emp_jax.masks(p, made), lambda p: emp_jax.apply(p, made)):
        with pytest.raises(emp_core.ArgumentError, match=r"names of their own, got 2 leaves a\.b"):
            f(params)


def loss(params, x):
    h = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"])
    return jnp.mean((h @ params["out"][0]["kernel"]) ** 2)


def small():
    return {k: v for k, v in tree().items() if k in ("dense", "out")}


def trainer(optimizer):
    @jax.jit
    def step(params, state, x):
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    return step


def batch(i):
    return jax.random.normal(jax.random.key(i), (8, 10))


@pytest.mark.parametrize(
    "inner", [optax.adamw(1e-2), optax.sgd(0.05, momentum=0.9), optax.chain(optax.clip(1.0), optax.rmsprop(1e-2))],
    ids=["adamw", "sgd", "chain"],
)  # fmt: skip
def test_masks_are_kept_through_training(inner):
    params, made, _ = emp_jax.prune(small(), sparsity=0.6)
    kept = emp_jax.masks(params, made)
    optimizer = emp_jax.keep_masks(inner, kept)
    state, step = optimizer.init(params), trainer(optimizer)
    for i in range(8):
        params, state = step(params, state, batch(i))
    for name, a in emp_jax.find_weights(params).items():
        assert not np.asarray(a)[~np.asarray(made.masks[name])].any()
    trees = [s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, dict)) if isinstance(s, dict)]
    assert trees
    for moment in trees:
        assert not np.asarray(moment["dense"]["kernel"])[~np.asarray(kept["dense"]["kernel"])].any()


@pytest.mark.parametrize("sparsity", [0.8, None])
def test_gradual_follows_the_ramp(sparsity):
    params = small()
    optimizer = emp_jax.gradual(optax.adam(1e-2), sparsity=sparsity, begin=2, steps=4, every=3)
    state, step = optimizer.init(params), trainer(optimizer)
    wanted = emp_core.cubic_schedule(0.0, sparsity or 0.5, begin=2, steps=4, every=3)
    final = None
    for i in range(1, 25):
        params, state = step(params, state, batch(i))
        for name, a in emp_jax.find_weights(params).items():
            mask = np.asarray(emp_jax.find_weights(state.masks, lambda n, _, name=name: n == name)[name])
            assert not np.asarray(a)[~mask].any()
            if sparsity:
                assert abs(mask.sum() - (mask.size - round(wanted(i) * mask.size))) <= 1  # float32 on the device
        if i == 14:
            final = state.masks
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), final, state.masks))
    assert bool(state.masks["dense"]["bias"].all())
    assert 0.1 < emp_jax.sparsity_of(state) < 0.85


@pytest.mark.parametrize(("begin", "wanted"), [(0, [0.3] * 4), (2, [0, 0.3, 0.3, 0.3])])
@pytest.mark.parametrize("sparsity", [0.8, None])
def test_gradual_masks_at_its_beginning(begin, wanted, sparsity):
    start = params = {"dense": {"kernel": tree()["dense"]["kernel"]}}
    optimizer = emp_jax.gradual(optax.adam(1e-2), sparsity=sparsity, begin=begin, steps=2, every=5, initial=0.3)
    state, seen = jax.jit(optimizer.init)(params), []
    for _ in wanted:
        updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float((params["dense"]["kernel"] == 0).mean()))
    assert np.allclose(seen, wanted)
    if begin == 0:
        first = emp_core.select(np.asarray(start["dense"]["kernel"]), sparsity=0.3).mask
        assert np.array_equal(state.masks["dense"]["kernel"], first)
        assert np.array_equal(state.aside["dense"]["kernel"], np.where(first, 0, start["dense"]["kernel"]))
        assert not np.asarray(state.inner[0].mu["dense"]["kernel"])[~np.asarray(first)].any()


def test_emps_own_sparsity_is_exact_at_the_end():
    params = small()
    optimizer = emp_jax.gradual(optax.sgd(0.0), begin=0, steps=1, every=1)
    state = optimizer.init(params)
    params2, state = trainer(optimizer)(params, state, batch(0))
    for name, a in emp_jax.find_weights(params).items():
        mask = emp_core.select(np.asarray(a)).mask
        assert np.array_equal(np.asarray(emp_jax.find_weights(params2)[name]), np.where(mask, a, 0))


def test_gradual_takes_numbers_of_numpy():
    emp_jax.gradual(optax.sgd(1.0), sparsity=np.float32(0.5), steps=np.int64(2), initial=np.float32(0.1))


@pytest.mark.parametrize(("options", "what"), WRONG)
def test_gradual_names_the_option_that_is_wrong(options, what):
    with pytest.raises(emp_core.ArgumentError, match=what):
        emp_jax.gradual(optax.sgd(1.0), **options)


def test_wrong_options():
    for options, what in (({"sparsity": 1.0}, "sparsity must be in"), ({"beta": 0}, "must be a finite number"),
                          ({"steps": 0}, "steps must be"), ({"initial": -1}, "must be a sparsity")):  # fmt: skip
        with pytest.raises(emp_core.ArgumentError, match=what):
            emp_jax.gradual(optax.sgd(1.0), **options)
    optimizer = emp_jax.gradual(optax.sgd(1.0))
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(small(), optimizer.init(small()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files(tmp_path, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype) if p.dtype == jnp.float32 else p, tree())
    pruned, certificate = emp_jax.apply(params, emp_jax.plan(params))
    path = emp_jax.save(pruned, certificate, tmp_path / "p.npz")
    again, said = emp_jax.load(jax.eval_shape(lambda: params), path)
    assert said == certificate
    assert jax.tree.structure(again) == jax.tree.structure(pruned)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(pruned), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_files_of_leaves_of_every_kind(tmp_path):
    w = jax.random.normal(jax.random.key(0), (8, 4))
    params = {
        "file": w, "allow_pickle": w + 1, "self": w + 2, "x": w + 3, "x.npy": w + 4, "a/b": jnp.ones(3),
        "é ": jnp.zeros(()),
        "small": w.astype(jnp.float8_e4m3fn), "int4": jnp.ones(3, jnp.int4), "wide": np.full((8, 4), 1 / 3),
        "steps": np.array([2**40, 5]), "scalar": np.float64(1 / 3), "half": np.ones(3, jnp.bfloat16),
        "rate": 0.1, "big": 2**40, "on": True, "z": 1j, "empty": np.ones((0, 3)), "fortran": np.ones((2, 3)).T,
    }  # fmt: skip
    pruned, _, certificate = emp_jax.prune(params)
    path = emp_jax.save(pruned, certificate, tmp_path / "p.npz")
    again, said = emp_jax.load(params, path)
    assert said == certificate
    for name, leaf in pruned.items():
        found = again[name]
        assert isinstance(found, np.ndarray if isinstance(leaf, np.generic) else type(leaf)), name
        assert (np.shape(found), np.asarray(found).dtype) == (np.shape(leaf), np.asarray(leaf).dtype)
        assert np.asarray(found).tobytes() == np.asarray(leaf).tobytes(), name
    with np.load(path) as held:
        assert np.array_equal(held["file"], pruned["file"])
    second = emp_jax.save(pruned, certificate, tmp_path / "q.npz")
    for other, what in ((1, "int64"), ("relu", "None")):
        with pytest.raises(emp_core.ArgumentError, match=rf"of shape \(\) and type float64, got \(\) and {what}"):
            emp_jax.load({**params, "rate": other}, second)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_files_of_names_that_an_archive_would_change_are_refused(tmp_path, name):
    pruned, _, certificate = emp_jax.prune({name: jnp.eye(3)})
    with pytest.raises(emp_core.ArgumentError, match="text without NUL, got"):
        emp_jax.save(pruned, certificate, tmp_path / "p.npz")


@pytest.mark.parametrize(("leaf", "what"), [
    (jax.nn.relu, "a custom_jvp"), ("relu", "a str"), (np.array([None]), "a ndarray"), (2**100, "a int"),
    (jax.random.key(0), "a key<fry>"),
])  # fmt: skip
def test_files_of_leaves_that_are_no_numbers_are_refused(tmp_path, leaf, what):
    pruned, _, certificate = emp_jax.prune({"w": jax.random.normal(jax.random.key(0), (8, 4)), "other": leaf})
    with pytest.raises(emp_core.ArgumentError, match=f"arrays of numbers, or numbers, got other, {what}"):
        emp_jax.save(pruned, certificate, tmp_path / "p.npz")
    assert not list(tmp_path.iterdir())


def test_files_of_something_else_are_refused(tmp_path):
    params = tree()
    pruned, certificate = emp_jax.apply(params, emp_jax.plan(params))
    with pytest.raises(emp_core.ArgumentError, match="must be as the certificate says"):
        emp_jax.save(params, certificate, tmp_path / "p.npz")
    with pytest.raises(emp_core.ArgumentError, match="must be a place for a file"):
        emp_jax.save(pruned, certificate, tmp_path / "none" / "p.npz")
    path = emp_jax.save(pruned, certificate, tmp_path / "p.npz")
    with pytest.raises(emp_core.ArgumentError, match="must have the names of"):
        emp_jax.load({"other": jnp.ones(3)}, path)
    with pytest.raises(emp_core.ArgumentError, match=r"must have dense\.kernel of shape \(10, 16\) and type float32"):
        emp_jax.load({**params, "dense": {"kernel": jnp.ones((10, 15)), "bias": jnp.ones(16)}}, path)
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(emp_core.ArgumentError, match="must be a file that `save` wrote"):
        emp_jax.load(params, tmp_path / "text.npz")
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    arrays["dense.kernel"][0, 0] += 1
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(emp_core.ArgumentError, match=r"as its certificate says, got such in which dense\.kernel"):
        emp_jax.load(params, tmp_path / "changed.npz")
