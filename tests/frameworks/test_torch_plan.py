"""emp_torch's verbs: find, plan, apply, verify, save, load, export."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import emp_core  # noqa: E402
import emp_torch  # noqa: E402
from emp_core.plans import Plan  # noqa: E402


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_a_plan_is_what_the_core_selects(scope):
    model = network()
    made = emp_torch.plan(model, scope=scope, beta=0.9)
    values = {w.name: w.value.detach().numpy() for w in emp_torch.find_weights(model).weights}
    if scope == "model":
        expected = emp_core.select(values, scope="model", beta=0.9).mask
    else:
        expected = {
            n: emp_core.select(v, scope="rows" if scope == "row" else "whole", beta=0.9).mask for n, v in values.items()
        }
    for name, mask in expected.items():
        assert np.array_equal(made.masks[name].numpy(), mask)
    total = made.total
    assert total.k == sum(int(mask.sum()) for mask in expected.values())
    assert total.mass_lower <= total.mass <= total.mass_upper
    assert emp_torch.plan(network(), scope=scope, beta=0.9).to_json() == made.to_json()
    again = Plan.from_json(made.to_json())
    assert again == made
    assert again.to_json() == made.to_json()
    assert "all" in str(made)


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_apply_zeroes_what_the_plan_removes_and_nothing_else(scope):
    model, before = network(), network()
    made = Plan.from_json(emp_torch.plan(model, scope=scope).to_json())
    held = {n: id(p) for n, p in model.named_parameters()}
    emp_torch.apply(model, made)
    assert {n: id(p) for n, p in model.named_parameters()} == held
    for name, value in before.state_dict().items():
        expected = torch.where(torch.as_tensor(made.masks[name]), value, 0) if name in made.masks else value
        assert torch.equal(model.state_dict()[name], expected), name
    assert emp_torch.verify(model) == ()


def test_a_plan_of_another_model_is_refused_and_nothing_changes():
    made, other = emp_torch.plan(network(0)), network(1)
    before = {n: p.clone() for n, p in other.named_parameters()}
    with pytest.raises(emp_core.ArgumentError, match=r"got one made from other values of 0\.weight"):
        emp_torch.apply(other, made)
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())
    with pytest.raises(emp_core.ArgumentError, match="which it does not have"):
        emp_torch.apply(nn.Linear(2, 2), made)


def test_a_changed_plan_is_refused():
    body = json.loads(emp_torch.plan(network()).to_json())
    body["masks"]["0.weight"] = body["masks"]["4.weight"]
    with pytest.raises(emp_core.ArgumentError, match="plan must be as"):
        Plan.from_json(json.dumps(body))
    for text in ("", "[]", "{}", "null", json.dumps({**body, "version": 9}), json.dumps({**body, "entries": [1]})):
        with pytest.raises(emp_core.ArgumentError, match="plan must be"):
            Plan.from_json(text)


def test_verify_finds_every_change():
    for change in (
        lambda m: m[0].weight.data.view(-1)[m[0].weight.data.view(-1) == 0].shape,
        lambda m: m[0].weight.data.masked_fill_(m[0].weight == 0, 1e-3),
        lambda m: m[4].weight.data.mul_(2),
        lambda m: m[4].weight.data.copy_(m[4].weight.flip(0)),
    ):
        model = network()
        emp_torch.prune(model)
        assert emp_torch.verify(model) == ()
        before = [p.clone() for p in model.parameters()]
        change(model)
        changed = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert bool(emp_torch.verify(model)) == changed
    with pytest.raises(emp_core.ArgumentError, match="got one without"):
        emp_torch.verify(network())


def test_files(tmp_path):
    model = network()
    emp_torch.prune(model)
    place = emp_torch.save(model, tmp_path / "m.pt")
    again = emp_torch.load(network(1), place)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert emp_torch.certificate_of(again) == emp_torch.certificate_of(model)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    with pytest.raises(emp_core.ArgumentError, match="must be the one"):
        emp_torch.load(nn.Linear(2, 2), place)
    (tmp_path / "bad.pt").write_bytes(place.read_bytes()[:500])
    for bad in ("bad.pt", "missing.pt"):
        with pytest.raises(emp_core.ArgumentError, match="must be a file that `save` wrote"):
            emp_torch.load(network(), tmp_path / bad)
    model[0].weight.data += 1
    with pytest.raises(emp_core.ArgumentError, match="must be as its certificate says"):
        emp_torch.save(model, tmp_path / "m.pt")
    with pytest.raises(emp_core.ArgumentError, match="must be a place for a file"):
        emp_torch.save(again, tmp_path / "no" / "m.pt")


def test_weights_that_are_found_and_those_left_alone():
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({
        "table": nn.Embedding(9, 6), "one": shared, "two": shared, "up": nn.ConvTranspose2d(6, 4, 3),
        "attention": nn.MultiheadAttention(6, 2), "lstm": nn.LSTM(6, 5), "norm": nn.LayerNorm(6),
        "lazy": nn.LazyLinear(3), "small": nn.Linear(1, 2),
    })  # fmt: skip
    found = emp_torch.find_weights(model, min_size=3, exclude=["small.*"])
    assert {w.name: w.axis for w in found.weights} == {
        "one.weight": 0, "up.weight": 1, "attention.in_proj_weight": 0, "attention.out_proj.weight": 0,
        "lstm.weight_ih_l0": 0, "lstm.weight_hh_l0": 0,
    }  # fmt: skip
    assert set(dict(found.refusals)) == {"table.weight", "lazy.weight", "small.weight"}
    assert "table.weight" in {w.name for w in emp_torch.find_weights(model, embeddings=True).weights}
    assert [w.name for w in emp_torch.find_weights(model, include=["up*"]).weights] == ["up.weight"]
    with pytest.raises(
        emp_core.ArgumentError, match="include must match names of weights, got 'nix', which matches none"
    ):
        emp_torch.find_weights(model, include=["nix"])
    with pytest.raises(emp_core.ArgumentError, match="must have something to prune"):
        emp_torch.plan(nn.ReLU())


def test_nan_is_named():
    model = network()
    model[4].weight.data[0, 0] = float("nan")
    with pytest.raises(emp_core.PoolError, match=r"4\.weight"):
        emp_torch.plan(model)


def test_criteria_against_worked_numbers():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    batches = [torch.tensor([[3.0, 1.0], [4.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    statistics = emp_torch.calibrate(model, batches, loss=lambda m, x: m(x).sum())
    weights = emp_torch.find_weights(model).weights
    wanda = emp_torch.scores(weights, "wanda", statistics=statistics)["0.weight"]
    torch.testing.assert_close(wanda, model[0].weight.detach().abs() * torch.tensor([5.0, 2.0**0.5]))
    gradient = torch.tensor([[7.0, 2.0], [7.0, 2.0]])  # Σx over both batches, all positive
    torch.testing.assert_close(emp_torch.scores(weights, "sensitivity", statistics=statistics)["0.weight"], gradient)
    torch.testing.assert_close(
        emp_torch.scores(weights, "taylor", statistics=statistics)["0.weight"],
        gradient * model[0].weight.detach().abs(),
    )
    outputs = torch.cat([model(x) for x in batches]).detach().norm(dim=0)
    torch.testing.assert_close(
        emp_torch.scores(weights, "activation", statistics=statistics)["0.weight"],
        model[0].weight.detach().abs() * outputs[:, None],
    )
    made = emp_torch.prune(model, criterion="wanda", statistics=statistics, scope="row")
    assert made.criterion == "wanda"
    assert emp_torch.verify(model) == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_taylor_is_the_core_s_and_sums_are_wide(dtype):
    """Of 300 small gradients after a large one, sums in bfloat16 would keep none."""
    r = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).to(dtype)
    batches = [torch.full((1, 3), 64.0, dtype=dtype)]
    batches += [torch.tensor(r.choice([0.125, -0.0625], (4, 3))).to(dtype) for _ in range(300)]
    statistics = emp_torch.calibrate(model, batches, loss=lambda m, x: m(x).sum())
    assert statistics.batches == 301
    each = np.stack([x.double().sum(0).numpy() for x in batches])  # the gradient of every row of the weight
    weights, value = emp_torch.find_weights(model).weights, model[0].weight.detach().double().numpy()
    found = {c: emp_torch.scores(weights, c, statistics=statistics)["0.weight"] for c in ("taylor", "sensitivity")}
    assert all(f.dtype == torch.promote_types(dtype, torch.float32) for f in found.values())
    total = np.broadcast_to(each.sum(0), value.shape)
    np.testing.assert_allclose(found["taylor"].numpy(), emp_core.criteria.taylor(value, total), rtol=1e-6)
    np.testing.assert_allclose(found["sensitivity"].numpy(), np.broadcast_to(abs(each).sum(0), value.shape), rtol=1e-6)
    assert emp_torch.plan(model, criterion="taylor", statistics=statistics).criterion == "taylor"


def test_what_pulls_a_weight_both_ways_cancels_in_taylor_and_adds_up_in_sensitivity():
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    model[0].weight.data[...] = -2.0
    x = [torch.tensor([[3.0]]), torch.tensor([[-1.0]])]
    statistics = emp_torch.calibrate(model, x, loss=lambda m, x: m(x).sum())
    weights = emp_torch.find_weights(model).weights
    assert emp_torch.scores(weights, "taylor", statistics=statistics)["0.weight"].item() == 4  # |−2·(3 − 1)|
    assert emp_torch.scores(weights, "sensitivity", statistics=statistics)["0.weight"].item() == 4  # 3 + 1


@pytest.mark.parametrize("criterion", ["wanda", "activation", "f_statistic"])
def test_scores_of_float16_neither_overflow_nor_vanish(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 900))
    model[0].weight.data.uniform_(0.5, 1)
    model.half()
    batches = [1000 + 100 * torch.randn(64, 40).half() for _ in range(2)]
    statistics = emp_torch.calibrate(model, batches, labels=lambda x: torch.arange(len(x)) % 4)
    found = emp_torch.scores(emp_torch.find_weights(model).weights, criterion, statistics=statistics)["0.weight"]
    assert found.isfinite().all()
    assert (found > 0).all()
    assert len(found.unique()) > 2000


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_wanda_of_convolutions_is_that_of_its_input_channels(groups, transposed):
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(kind(4, 8, 3, groups=groups))
    x = torch.randn(2, 4, 6, 6) * torch.arange(1.0, 5).reshape(1, 4, 1, 1)
    statistics = emp_torch.calibrate(model, [x])
    found = emp_torch.scores(emp_torch.find_weights(model).weights, "wanda", statistics=statistics)["0.weight"]
    norms, weight = x.square().sum((0, 2, 3)).sqrt(), model[0].weight.detach().abs()
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            channel = i if transposed else (i // (8 // groups)) * (4 // groups) + j
            torch.testing.assert_close(found[i, j], weight[i, j] * norms[channel])


def test_calibration_leaves_the_model_as_it_was():
    model = network().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    emp_torch.calibrate(model, [torch.randn(2, 3, 8, 8)], loss=lambda m, x: m(x).square().mean())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(emp_core.ArgumentError, match="at least one batch"):
        emp_torch.calibrate(model, [])
    with pytest.raises(emp_core.ArgumentError, match="criterion wanda needs statistics"):
        emp_torch.plan(model, criterion="wanda")
    with pytest.raises(emp_core.ArgumentError, match="criterion must be one of"):
        emp_torch.plan(model, criterion="magic")


@pytest.mark.parametrize("axes", [2, 3])
def test_export_carries_the_certificate(tmp_path, axes):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    import emp_onnx

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5))
    emp_torch.prune(model)
    example = torch.randn(*([3] * (axes - 1)), 12)
    assert emp_torch.export(model, (example,), tmp_path / "m.onnx") == ()
    assert emp_onnx.verify(tmp_path / "m.onnx").ok
    assert len(emp_onnx.read_certificate(emp_onnx.load(tmp_path / "m.onnx")).weights) == 2
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    np.testing.assert_allclose(found, model(example).detach().numpy(), atol=1e-6)
    model[0].weight.data *= 2
    with pytest.raises(emp_core.ArgumentError, match="must be as its certificate says"):
        emp_torch.export(model, (example,), tmp_path / "m.onnx")
    emp_torch.recertify(model)
    emp_torch.export(model, (example,), tmp_path / "m.onnx")
    assert emp_onnx.verify(tmp_path / "m.onnx").ok


def test_no_warnings_of_ours():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emp_torch.prune(network(), scope="row")


def test_zeros_of_a_whole_layer_are_not_counted_when_certified_anew(tmp_path):
    """As zero-initialised layers have them, or the second factor of LoRA."""
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    nn.init.zeros_(model[1].weight)
    assert set(emp_torch.recertify(model).weights) == {"0.weight"}  # whose weights are all kept
    assert emp_torch.verify(model) == ()
    pruner = emp_torch.GradualPruner(model, sparsity=0.5, steps=1, every=1)
    pruner.step()
    pruner.finish()
    assert emp_torch.certificate_of(model).weights["0.weight"].k == 50
    assert emp_torch.verify(model) == ()
    emp_torch.save(model, tmp_path / "m.pt")
    nn.init.zeros_(model[0].weight)
    assert not emp_torch.recertify(model).weights


def test_a_file_that_is_refused_leaves_the_model_as_it_was(tmp_path):
    model, other = network(), network(1)
    emp_torch.prune(model)
    emp_torch.prune(other)
    before, said = {n: t.clone() for n, t in other.state_dict().items()}, emp_torch.certificate_of(other)
    body = torch.load(emp_torch.save(model, tmp_path / "m.pt"))
    for name, value, what in (
        ("0.weight", body["state_dict"]["0.weight"] + 1, "as its certificate says"),
        ("4.weight", torch.ones(2, 2), "must be the one"),  # torch has filled in the others when it refuses this
    ):
        torch.save({**body, "state_dict": {**body["state_dict"], name: value}}, tmp_path / "bad.pt")
        with pytest.raises(emp_core.ArgumentError, match=what):
            emp_torch.load(other, tmp_path / "bad.pt")
        assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
        assert emp_torch.certificate_of(other) == said
    with pytest.raises(emp_core.ArgumentError, match="must be the one"):
        emp_torch.load(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), tmp_path / "m.pt")


def test_what_cannot_be_certified_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4).double())
    for fill in (1e200, 1e308):
        nn.init.constant_(model[1].weight, fill)
        before = {n: p.clone() for n, p in model.named_parameters()}
        for refused in (emp_torch.prune, emp_torch.recertify):
            with pytest.raises(emp_core.ArgumentError, match=r"sum of magnitudes ≤ 1.34e\+154, got .* in 1.weight"):
                refused(model)
        made = emp_torch.plan(model, include=["0.*"])
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        emp_torch.apply(model, made)
    nn.init.ones_(model[1].weight)
    given = {"0.weight": torch.ones(4, 8), "1.weight": torch.full((4, 4), 1e308, dtype=torch.float64)}
    with pytest.raises(emp_core.ArgumentError, match=r"scores must have a sum of magnitudes .* in 1.weight"):
        emp_torch.plan(model, criterion=given)
    made, before = emp_torch.plan(model), {n: p.clone() for n, p in model.named_parameters()}
    endless = replace(made, entries=tuple(replace(e, l1=float("inf")) for e in made.entries))
    with pytest.raises(emp_core.ArgumentError, match="plan must hold finite figures"):
        emp_torch.apply(model, endless)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_eight_bits_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4).to(torch.float8_e4m3fn))
    assert [name for name, _ in emp_torch.prune(model).refusals] == ["1.weight"]
    assert emp_torch.verify(model) == ()
