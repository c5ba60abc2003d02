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


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_what_a_weight_is_computed_from_is_not_pruned_and_said():
    parametrizations, utils = nn.utils.parametrizations, nn.utils
    model = nn.ModuleDict({
        "lstm": utils.weight_norm(nn.LSTM(4, 6), "weight_hh_l0"),
        "cell": utils.weight_norm(nn.GRUCell(4, 6), "weight_ih"),
        "linear": parametrizations.weight_norm(nn.Linear(4, 3)), "conv": utils.spectral_norm(nn.Conv1d(4, 3, 2)),
        "attention": parametrizations.orthogonal(nn.MultiheadAttention(4, 2), "in_proj_weight"),
    })  # fmt: skip
    found = emp_torch.find_weights(model)
    assert [w.name for w in found.weights] == [
        "lstm.weight_ih_l0", "cell.weight_hh", "attention.out_proj.weight",
    ]  # fmt: skip
    assert dict(found.refusals) == {
        "lstm.weight_hh_l0": "it is computed from weight_hh_l0_g, weight_hh_l0_v, which is not pruned",
        "cell.weight_ih": "it is computed from weight_ih_g, weight_ih_v, which is not pruned",
        "linear.weight": "it is computed from parametrizations.weight.original0, parametrizations.weight.original1, "
        "which is not pruned",
        "conv.weight": "it is computed from weight_orig, which is not pruned",
        "attention.in_proj_weight": "it is computed from parametrizations.in_proj_weight.original, which is not pruned",
    }
    left = emp_torch.find_weights(model, exclude=["linear.*"], include=["l*", "conv.*"])
    assert dict(left.refusals)["linear.weight"] == "exclude leaves it out"
    emp_torch.prune(model)
    assert bool((model["lstm"].weight_hh_l0_g != 0).all())
    with pytest.raises(emp_core.ArgumentError, match="got weight: it is computed from"):
        emp_torch.plan(model["linear"])


@pytest.mark.parametrize("first", ["head", "table"])
def test_what_shares_its_parameter_with_a_table_is_one_in_either_order(first):
    table, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = table.weight
    parts = {"table": table, "head": head}
    model = nn.ModuleDict({first: parts.pop(first), **parts, "body": nn.Linear(4, 4)})
    found = emp_torch.find_weights(model)
    assert [w.name for w in found.weights] == ["body.weight"]
    assert found.refusals == ((f"{first}.weight", "it is a table of embeddings; ask for those with embeddings"),)
    everything = emp_torch.find_weights(model, embeddings=True).weights
    assert [w.name for w in everything] == [f"{first}.weight", "body.weight"]


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_certificates_hold_within_and_without_a_wrapper(wrap, tmp_path):
    def made(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))

    model, other, nested = made(), made(), made()
    outer = wrap(model)
    assert emp_torch.prune(outer).to_json() == emp_torch.prune(other).to_json()
    assert emp_torch.verify(model) == ()
    assert emp_torch.verify(wrap(other)) == ()
    place = emp_torch.save(outer, tmp_path / "m.pt")
    assert emp_torch.verify(emp_torch.load(made(1), place)) == ()
    assert emp_torch.verify(emp_torch.load(wrap(made(1)), place)) == ()
    nested[0] = wrap(nested[0])
    assert [w.name for w in emp_torch.find_weights(nested).weights] == ["0.weight", "1.weight"]
    emp_torch.prune(nested)
    assert emp_torch.verify(model, emp_torch.certificate_of(nested)) == ()
