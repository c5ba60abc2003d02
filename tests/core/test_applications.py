"""Criteria of groups, attention edges, Kolmogorov–Arnold nodes, signals: laws, then oracles, then numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import emp_core
from emp_core import ArgumentError, attention, criteria, kan, signals

FLOATS = st.floats(-100, 100, width=32)
MATRICES = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=FLOATS)


@given(MATRICES, MATRICES)
def test_taylor_of_groups(w, g):
    if w.shape != g.shape:
        with pytest.raises(ArgumentError, match="must have the shape of the weights"):
            criteria.taylor(w, g)
        return
    assert np.array_equal(criteria.taylor(w, g), criteria.gradient(w, g))
    for axis in (0, 1, (0, 1)):
        assert np.allclose(criteria.taylor(w, g, axis=axis), np.abs((w * g).sum(axis=axis)))


@given(MATRICES, MATRICES, st.floats(0, 1))
def test_combined_is_a_weighted_share(s, t, share):
    if s.shape != t.shape:
        return
    found = criteria.combined(s, t, share=share)
    assert (found >= 0).all()
    both = (1 - share) * (np.abs(s).sum() > 0) + share * (np.abs(t).sum() > 0)
    assert math.isclose(found.sum(), both, rel_tol=1e-9, abs_tol=1e-12)
    assert np.allclose(criteria.combined(7 * s, 3 * t, share=share), found)


def f_by_hand(a, y):
    """One feature, in loops."""
    classes = sorted(set(y.tolist()))
    mean = a.mean()
    between = sum((y == c).sum() * (a[y == c].mean() - mean) ** 2 for c in classes) / (len(classes) - 1)
    within = sum(((a[y == c] - a[y == c].mean()) ** 2).sum() for c in classes) / (len(a) - len(classes))
    return between / within


def test_f_statistic_against_loops_and_scipy():
    r = np.random.default_rng(0)
    a, y = r.standard_normal((60, 4, 3)) + 5, r.integers(0, 4, 60)
    found = criteria.f_statistic(a, y)
    assert found.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            assert math.isclose(found[i, j], f_by_hand(a[:, i, j], y), rel_tol=1e-9)
    assert np.allclose(criteria.f_statistic(a * 1e150, y), found)  # scaling changes nothing
    assert np.allclose(criteria.f_statistic(a - 3, np.array(list("abcd"))[y]), found)
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    assert np.allclose(found, stats.f_oneway(*(a[y == c] for c in range(4))).statistic)


def test_f_statistic_at_its_ends():
    found = criteria.f_statistic([[1.0, 0.0, 3.0], [1.0, 0.0, 4.0], [2.0, 0.0, 3.0], [2.0, 0.0, 4.0]], [0, 0, 1, 1])
    assert found[0] > 1e300
    assert found[1] == found[2] == 0
    assert emp_core.keep_count(found) == 1
    for labels, what in (
        ([0, 0, 0, 0], "at least 2 classes"),
        ([0, 1, 2, 3], "fewer than samples"),
        ([0], "one class per"),
    ):
        with pytest.raises(ArgumentError, match=what):
            criteria.f_statistic(np.ones((4, 2)), labels)
    with pytest.raises(ArgumentError, match="must be finite"):
        criteria.f_statistic([[np.nan], [1.0], [2.0]], [0, 1, 1])


def test_heads_share_keys():
    r = np.random.default_rng(0)
    q, k, v, o = r.random((6, 8)), r.random((2, 8)), r.random((2, 8)), r.random((6, 5))
    for norm in (1, 2, 3):
        expected = [
            (sum((part**norm).sum() for part in (q[h], k[h // 3], v[h // 3], o[h]))) ** (1 / norm) for h in range(6)
        ]
        assert np.allclose(criteria.heads(q, k, v, o, norm=norm), expected)
    with pytest.raises(ArgumentError, match="key must have two axes"):
        criteria.heads(q, r.random((4, 8)), v, o)
    with pytest.raises(ArgumentError, match="norm must be"):
        criteria.heads(q, k, v, o, norm=0.5)


def test_kan_in_any_layout():
    r = np.random.default_rng(0)
    base, spline = r.standard_normal((4, 7)), r.standard_normal((4, 7, 5))
    edges = criteria.kan_edges(base, spline)
    assert np.allclose(edges, np.abs(base) + np.abs(spline).sum(-1))
    assert np.allclose(criteria.kan_edges(base.T, spline.transpose(2, 1, 0), axis=0), edges.T)
    assert np.allclose(criteria.kan_edges(None, spline), np.abs(spline).sum(-1))
    after = r.random((3, 4))
    nodes = criteria.kan_nodes(edges, after)
    assert np.allclose(nodes, [min(edges[i].max(), after[:, i].max()) for i in range(4)])
    assert np.allclose(criteria.kan_nodes(edges.T, after.T, output_axis=1), nodes)
    assert np.allclose(criteria.kan_nodes(edges, after, both="max"), np.maximum(edges.max(1), after.max(0)))
    with pytest.raises(ArgumentError, match="share their nodes"):
        criteria.kan_nodes(edges, after.T)
    with pytest.raises(ArgumentError, match="one weight per edge"):
        criteria.kan_edges(base.T, spline)
    a, b = kan.remove_nodes({"w": edges}, {"v": after, "bias": np.ones(3)}, nodes > nodes.min(), axes={"w": 0, "v": 1})
    assert a["w"].shape == (3, 7)
    assert (b["v"].shape, b["bias"].shape) == ((3, 3), (3,))
    a, b = kan.remove_nodes({"w": edges, "bias": base}, {"v": after, "bias": base}, nodes > 0, axes={"w": 0, "v": 1})
    assert a["bias"] is b["bias"] is base  # what has no axis may be called alike
    with pytest.raises(ArgumentError, match="axes must name an array of one layer, got 'w', which both layers have"):
        kan.remove_nodes({"w": edges}, {"w": after}, nodes > 0, axes={"w": 0})
    for keep, what in ((np.zeros(4, bool), "at least one"), (np.ones(5, bool), "must have 5 nodes")):
        with pytest.raises(ArgumentError, match=what):
            kan.remove_nodes({"w": edges}, {"v": after}, keep, axes={"w": 0, "v": 1})


def test_a_trained_kan_loses_the_nodes_that_do_not_matter():
    """sin(πx₁) + x₂² through eight hidden nodes of which half were cut off: exactly those go, and no output changes."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.reproduce._kan import KanLayer
    from tests.reproduce.kan import node_scores

    torch.manual_seed(0)
    model = torch.nn.Sequential(KanLayer(2, 8), KanLayer(8, 1))
    x = torch.rand(256, 2) * 1.8 - 0.9
    y = torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    with torch.no_grad():
        model[1].base[:, 1::2] = 0
        model[1].spline[:, 1::2] = 0
        before = model(x)
        keep = emp_core.select(node_scores(model, "min"), beta=1.25).mask
        assert not keep[1::2].any()
        assert emp_core.select(node_scores(model, "max"), beta=1.25).mask[1::2].any()  # why min is the default
        dead = torch.arange(8) % 2 == 0
        first, last = kan.remove_nodes(
            {"base1": model[0].base, "scale1": model[0].scale, "spline1": model[0].spline},
            {"base2": model[1].base, "scale2": model[1].scale, "spline2": model[1].spline},
            dead,
            axes={
                **dict.fromkeys(("base1", "scale1", "spline1"), 0),
                **dict.fromkeys(("base2", "scale2", "spline2"), 1),
            },
        )
        smaller = torch.nn.Sequential(KanLayer(2, 4), KanLayer(4, 1))
        for layer, arrays in zip(smaller, (first, last), strict=True):
            for name, value in arrays.items():
                getattr(layer, name[:-1]).copy_(value)
        torch.testing.assert_close(smaller(x), before, atol=1e-5, rtol=1e-5)


@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-30, 30)
    )
)
@settings(max_examples=60)
def test_attention_edges_row_by_row(logits):
    weights = attention.weights_of(logits)
    assert np.allclose(weights.sum(-1), 1)
    chosen, pruned = attention.edges(weights), attention.prune_weights(weights)
    for i in np.ndindex(weights.shape[:-1]):
        assert np.array_equal(chosen.mask[i], emp_core.select(weights[i]).mask)
    assert np.allclose(pruned.sum(-1), 1)
    v = np.random.default_rng(0).standard_normal((weights.shape[-1], 3))
    moved = np.linalg.norm(weights @ v - pruned @ v, axis=-1)
    assert (moved <= 2 * (1 - chosen.mass) * np.linalg.norm(v, axis=-1).max() + 1e-9).all()


def test_masked_keys_are_never_kept():
    logits = np.array([[0.0, 1.0, -np.inf, -np.inf], [-np.inf] * 4, [2.0, -np.inf, 2.0, 2.0]])
    weights = attention.weights_of(logits)
    assert not np.isnan(weights).any()
    for beta in (0.5, 1.0):
        kept = attention.edges(weights, beta=beta).mask
        assert not kept[0, 2:].any()
        assert not kept[2, 1]
    pruned = attention.prune_weights(weights)
    assert np.array_equal(pruned[1], np.zeros(4))
    with np.errstate(invalid="ignore"):
        raw = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)  # as softmax gives it: a row of NaN
    assert np.isnan(raw[1]).all()
    assert attention.edges(raw).mask[1].all()
    with pytest.raises(emp_core.PoolError):
        attention.edges([[np.nan, 0.5, 0.5]])


def test_weights_keep_their_gradient():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    logits = torch.tensor([[0.3, -1.0, -math.inf, 2.0], [-math.inf] * 4], dtype=torch.float64)
    ours, theirs = logits.clone().requires_grad_(), logits[:1].clone().requires_grad_()
    wanted = torch.tensor([3.0, -1.0, 5.0, 2.0], dtype=torch.float64)
    (attention.weights_of(ours) * wanted).sum().backward()
    (theirs.softmax(-1) * wanted).sum().backward()
    assert torch.allclose(ours.grad[:1], theirs.grad)
    assert not ours.grad[1].any()


def test_attention_in_torch_and_under_jit():
    logits = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    expected = attention.prune_weights(attention.weights_of(logits), beta=0.8)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weights = torch.from_numpy(logits).softmax(-1).requires_grad_()
    found = attention.prune_weights(weights, beta=0.8)
    assert np.allclose(found.detach().numpy(), expected, atol=1e-6)
    found.square().sum().backward()
    assert weights.grad.isfinite().all()
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    traced = jax.jit(lambda w: attention.prune_weights(w, beta=0.8))(jax.nn.softmax(jax.numpy.asarray(logits)))
    assert np.allclose(np.asarray(traced), expected, atol=1e-6)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))))
def test_pixels_are_selections(image):
    kept, chosen = signals.pixels(image)
    assert kept.dtype == image.dtype
    for c in range(image.shape[2]):
        assert np.array_equal(kept[..., c], np.where(emp_core.select(image[..., c]).mask, image[..., c], 0))
    patches, _ = signals.pixels(image, patch=(4, 4))
    for c in range(image.shape[2]):
        for i in range(0, image.shape[0], 4):
            for j in range(0, image.shape[1], 4):
                part = image[i : i + 4, j : j + 4, c]
                assert np.array_equal(patches[i : i + 4, j : j + 4, c], np.where(emp_core.select(part).mask, part, 0))
    first, _ = signals.pixels(np.moveaxis(image, -1, 0), channel_axis=0)
    assert np.array_equal(np.moveaxis(first, 0, -1), kept)
    assert chosen.mask.shape == image.shape


def test_psnr_and_ssim():
    r = np.random.default_rng(0)
    image = r.integers(0, 256, (24, 30)).astype(float)
    assert signals.psnr(image, image) == math.inf
    assert math.isclose(signals.psnr(image, image + 5), 20 * math.log10(255 / 5))
    noisy = np.clip(image + r.standard_normal(image.shape) * 20, 0, 255)
    assert -1 <= signals.ssim(image, noisy) < signals.ssim(image, image) == 1
    assert signals.ssim(image, noisy) == signals.ssim(noisy, image)
    colours = np.stack([image, noisy, image], -1)
    assert math.isclose(signals.ssim(colours, image[..., None] * np.ones(3)), (2 + signals.ssim(image, noisy)) / 3)
    scipy = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")

    def blur(x):
        return scipy.gaussian_filter(x, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    ma, mb = blur(image), blur(noisy)
    va, vb, vab = blur(image**2) - ma**2, blur(noisy**2) - mb**2, blur(image * noisy) - ma * mb
    c1, c2 = 2.55**2, 7.65**2
    expected = ((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()
    assert math.isclose(signals.ssim(image, noisy), expected, rel_tol=1e-9)
    for call in (lambda: signals.psnr(image, image[:2]), lambda: signals.ssim(image[:5], image[:5])):
        with pytest.raises(ArgumentError, match="images must"):
            call()
    with pytest.raises(ArgumentError, match="image must have 3 axes"):
        signals.pixels(image)
    with pytest.raises(ArgumentError, match="signal must have samples"):
        signals.spectrum([])
