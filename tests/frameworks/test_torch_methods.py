"""emp_torch as a drop-in for torch.nn.utils.prune: same leavings, masks of emp_core, bit for bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import emp_core  # noqa: E402
import emp_torch  # noqa: E402
from emp_core.testing import weight_tensors  # noqa: E402


def linear(seed=0, inputs=24, outputs=16):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 4)
    )


def pairs(model):
    return [(m, "weight") for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]


@given(weight_tensors(dtype="float32"), st.sampled_from([0.5, 1.0, 1.5]))
@settings(max_examples=40)
def test_masks_are_those_of_the_core(w, beta):
    w = np.clip(w, -1e30, 1e30)
    holder = nn.Module()
    holder.w = nn.Parameter(torch.from_numpy(w.copy()))
    emp_torch.effective_unstructured(holder, "w", beta)
    assert np.array_equal(holder.w_mask.numpy(), emp_core.select(w, beta=beta).mask)
    assert holder.w_mask.dtype == torch.bool


def test_what_is_left_behind_is_what_the_stock_method_leaves():
    ours, stock = linear(), linear()
    emp_torch.effective_unstructured(ours, "weight")
    k = int(ours.weight_mask.sum())
    prune.l1_unstructured(stock, "weight", amount=stock.weight.numel() - k)
    assert set(ours.state_dict()) == set(stock.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in stock.named_parameters()]
    x = torch.randn(5, 24)
    assert torch.equal(ours(x), stock(x))
    assert prune.is_pruned(ours)
    ours(x).sum().backward()
    assert not ours.weight_orig.grad[~ours.weight_mask].any()
    prune.remove(ours, "weight")
    assert not prune.is_pruned(ours)
    assert int((ours.weight != 0).sum()) == k


def test_in_torchs_own_global_pruning_and_in_ours():
    ours, stock = network(), network()
    chosen = emp_torch.effective_global(pairs(ours), 0.8)
    prune.global_unstructured(pairs(stock), pruning_method=emp_torch.EffectiveUnstructured, beta=0.8)
    for (a, _), (b, _) in zip(pairs(ours), pairs(stock), strict=True):
        assert torch.equal(a.weight_mask, b.weight_mask.bool())
        assert torch.equal(a.weight, b.weight)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours(x), stock(x))
    assert sum(int(m.weight_mask.sum()) for m, _ in pairs(ours)) == int(chosen.k)


def test_global_at_a_sparsity_equals_torchs():
    ours, stock = network(), network()
    emp_torch.effective_global(pairs(ours), sparsity=0.7)
    prune.global_unstructured(pairs(stock), pruning_method=prune.L1Unstructured, amount=0.7)
    for (a, _), (b, _) in zip(pairs(ours), pairs(stock), strict=True):
        assert torch.equal(a.weight_mask, b.weight_mask.bool())


@pytest.mark.parametrize("first", ["ours", "stock"])
def test_pruned_again_only_what_was_left_competes(first):
    layer = linear()
    if first == "ours":
        emp_torch.effective_unstructured(layer, "weight")
    else:
        prune.l1_unstructured(layer, "weight", amount=0.3)
    before = layer.weight_mask.bool().clone()
    emp_torch.effective_unstructured(layer, "weight")
    left = layer.weight_orig.detach().numpy()[before.numpy()]
    assert int(layer.weight_mask.sum()) == emp_core.keep_count(left)
    assert not (layer.weight_mask.bool() & ~before).any()

    model = network()
    emp_torch.effective_global(pairs(model))
    once = {m: m.weight_mask.bool().clone() for m, _ in pairs(model)}
    chosen = emp_torch.effective_global(pairs(model))
    assert int(chosen.n) == sum(int(mask.sum()) for mask in once.values())
    assert all(not (m.weight_mask.bool() & ~mask).any() for m, mask in once.items())


def test_structured_keeps_whole_channels():
    layer = nn.Conv2d(4, 12, 3)
    with torch.no_grad():
        layer.weight *= torch.arange(12.0).reshape(-1, 1, 1, 1)
    emp_torch.effective_structured(layer, "weight", dim=0)
    rows = layer.weight_mask.reshape(12, -1)
    assert bool((rows.all(1) == rows.any(1)).all())
    norms = layer.weight_orig.detach().double().reshape(12, -1).norm(dim=1).numpy()
    assert int(rows.all(1).sum()) == emp_core.keep_count(norms)
    with pytest.raises(emp_core.ArgumentError, match=r"dim must be in \[-4, 4\), got 7"):
        emp_torch.effective_structured(nn.Conv2d(4, 12, 3), "weight", dim=7)


def test_state_dict_round_trip_and_scores_of_ones_own():
    layer, again = linear(0), linear(1)
    scores = torch.rand_like(layer.weight)
    emp_torch.effective_unstructured(layer, "weight", importance_scores=scores)
    emp_torch.effective_unstructured(again, "weight")
    again.load_state_dict(layer.state_dict())
    x = torch.randn(3, 24)
    assert torch.equal(again(x), layer(x))
    assert np.array_equal(layer.weight_mask.numpy(), emp_core.select(scores.numpy()).mask)
    assert torch.equal(copy.deepcopy(_remade(layer))(x), layer(x))


def _remade(layer):
    """After a forward pass under no_grad the product has no graph, and copies work, as with stock methods."""
    with torch.no_grad():
        layer(torch.zeros(1, 24))
    return layer


def test_a_failure_leaves_the_module_as_it_was():
    layer = linear()
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(emp_core.PoolError, match="must be finite"):
        emp_torch.effective_unstructured(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = float("inf")
    with pytest.raises(emp_core.PoolError, match="must be finite"):
        emp_torch.effective_global(pairs(model))
    assert all(isinstance(m.weight, nn.Parameter) for m, _ in pairs(model))


def test_wrong_arguments():
    layer = linear()
    with pytest.raises(emp_core.ArgumentError, match="at least one pair"):
        emp_torch.effective_global([])
    with pytest.raises(emp_core.ArgumentError, match=r"each pair .* once"):
        emp_torch.effective_global([(layer, "weight"), (layer, "weight")])
    with pytest.raises(emp_core.ArgumentError, match="must name tensors, got 'wieght' of Linear"):
        emp_torch.effective_global([(layer, "wieght")])
    with pytest.raises(emp_core.ArgumentError, match="beta must be"):
        emp_torch.effective_global([(layer, "weight")], 0)
    with pytest.raises(emp_core.ArgumentError, match="importance_scores of 'weight' must have its shape"):
        emp_torch.effective_global([(layer, "weight")], importance_scores={(layer, "weight"): torch.ones(3)})


def test_half_precision_is_pruned_as_it_is():
    layer = linear().bfloat16()
    emp_torch.effective_unstructured(layer, "weight")
    assert layer.weight.dtype == torch.bfloat16
    assert int(layer.weight_mask.sum()) == emp_core.keep_count(layer.weight_orig.detach().float().numpy())


def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    host, device = network(), network().cuda()
    emp_torch.effective_global(pairs(host))
    emp_torch.effective_global(pairs(device))
    for (a, _), (b, _) in zip(pairs(host), pairs(device), strict=True):
        assert torch.equal(a.weight_mask, b.weight_mask.cpu())


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "weight"), (nn.BatchNorm1d(3), "running_mean")],
)
def test_global_refuses_what_cannot_be_masked_before_it_masks_others(module, name):
    layer = linear()
    with pytest.raises(emp_core.ArgumentError, match=rf"must name parameters, got '{name}' of"):
        emp_torch.effective_global([(layer, "weight"), (module, name)])
    assert isinstance(layer.weight, nn.Parameter)
