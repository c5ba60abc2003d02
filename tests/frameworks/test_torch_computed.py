"""Weights that are computed from others: masked, normed, parametrized, tied."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import emp_core  # noqa: E402
import emp_torch  # noqa: E402


def masked(seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(8, 4)
    prune.l1_unstructured(layer, "weight", amount=0.3)
    return layer


def trained(layer):
    """One step, after which the attribute `weight` of a masked layer is what it was before."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=50.0)
    layer(torch.randn(16, layer.in_features)).square().mean().backward()
    optimizer.step()
    return layer


def test_a_masked_weight_is_read_as_the_next_forward_pass_makes_it():
    layer = trained(masked())
    right = (layer.weight_orig * layer.weight_mask).detach()
    assert not torch.equal(layer.weight, right)
    assert emp_torch.plan(layer).total.k == int(emp_core.keep_count(right))
    made = emp_torch.prune(layer)
    assert torch.equal(layer.weight, torch.where(made.masks["weight"], right, 0))
    assert layer.weight.requires_grad
    assert emp_torch.verify(layer) == ()
    assert emp_torch.verify(trained(layer))  # without a forward pass in between


def test_masked_modules_are_loaded_as_they_were_saved(tmp_path):
    layer, other = masked(), masked(1)
    emp_torch.prune(layer)
    emp_torch.load(other, emp_torch.save(layer, tmp_path / "m.pt"))
    assert torch.equal(other.weight, layer.weight)
    assert emp_torch.verify(other) == ()


def test_the_flat_weights_of_a_masked_recurrent_module_follow():
    torch.manual_seed(0)
    model = nn.LSTM(4, 6)
    prune.l1_unstructured(model, "weight_hh_l0", amount=0.3)
    emp_torch.prune(model)
    assert any(w is model.weight_hh_l0 for w in model._flat_weights)
    assert emp_torch.verify(model) == ()
