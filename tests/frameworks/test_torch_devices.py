"""The laws of emp_torch on every device: masks of the core bit for bit, masked weights that stand still, files that
travel from one device to another."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.nn.utils import prune  # noqa: E402

import emp_core  # noqa: E402
import emp_torch  # noqa: E402
from emp_core import attention, criteria, kan  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 40), nn.ReLU(),
        nn.Linear(40, 10),
    )  # fmt: skip


def pairs(model):
    return [(m, "weight") for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]


def wide(tensor):
    """What NumPy can hold, exactly."""
    return tensor.detach().cpu().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).numpy()


def same_place(tensor, device):
    return tensor.device.type == device.type


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("shape", [(1,), (7, 5), (40, 3, 3, 3), (300, 700), (4_500_001,)], ids=str)
def test_masks_are_those_of_the_core(device, dtype, shape):
    if shape[0] > 10**6 and dtype != torch.float32:
        pytest.skip("one large array is enough")
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if len(shape) == 2:
        w = (w * 4).round() / 4  # ties
    holder = nn.Module()
    holder.w = nn.Parameter(w.to(device))
    emp_torch.effective_unstructured(holder, "w", 0.9)
    assert same_place(holder.w_mask, device)
    assert holder.w_mask.dtype == torch.bool
    expected = emp_core.select(wide(w), beta=0.9)
    assert np.array_equal(holder.w_mask.cpu().numpy(), expected.mask)
    chosen = emp_core.select(holder.w_orig.detach(), beta=0.9)
    assert (int(chosen.n), int(chosen.k)) == (expected.n, expected.k)
    for field in ("n_eff", "mass", "mass_lower", "mass_upper"):
        assert float(getattr(chosen, field)) == pytest.approx(float(getattr(expected, field)), rel=1e-9)
    assert float(chosen.mass_lower) <= float(chosen.mass) <= float(chosen.mass_upper)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("options", [{}, {"beta": 0.6}, {"sparsity": 0.8}, {"order": 1}], ids=str)
def test_global_is_as_on_the_host(device, options, again):
    host, there = network(), network().to(device)
    for model in (host, there):
        if again:  # what was pruned before does not compete
            emp_torch.effective_unstructured(model[0], "weight")
        emp_torch.effective_global(pairs(model), **options)
    for (a, _), (b, _) in zip(pairs(host), pairs(there), strict=True):
        assert torch.equal(a.weight_mask.bool(), b.weight_mask.cpu().bool())
        assert same_place(b.weight_mask, device)
        assert same_place(b.weight, device)
        assert torch.equal(a.weight, b.weight.cpu())
    prune.remove(there[0], "weight")
    assert not there[0].weight[~host[0].weight_mask.bool().to(device)].any()


def test_global_is_torchs_own(device):
    ours, stock = network().to(device), network().to(device)
    emp_torch.effective_global(pairs(ours), sparsity=0.7)
    prune.global_unstructured(pairs(stock), pruning_method=prune.L1Unstructured, amount=0.7)
    other = network().to(device)
    prune.global_unstructured(pairs(other), pruning_method=emp_torch.EffectiveUnstructured, beta=0.8)
    for (a, _), (b, _), (c, _) in zip(pairs(ours), pairs(stock), pairs(other), strict=True):
        assert torch.equal(a.weight_mask, b.weight_mask.bool())
        assert same_place(c.weight_mask, device)


def test_structured_masks_and_state_dicts_travel(device):
    host, there = nn.Conv2d(4, 12, 3), nn.Conv2d(4, 12, 3)
    with torch.no_grad():
        host.weight *= torch.arange(12.0).reshape(-1, 1, 1, 1)
        there.load_state_dict(host.state_dict())
        there.to(device)
    for layer in (host, there):
        emp_torch.effective_structured(layer, "weight", dim=0)
    assert torch.equal(host.weight_mask, there.weight_mask.cpu())
    state = {name: value.cpu() for name, value in there.state_dict().items()}
    assert all(torch.equal(value, host.state_dict()[name]) for name, value in state.items())
    x = torch.randn(2, 4, 8, 8)
    there.load_state_dict(host.state_dict())
    torch.testing.assert_close(there(x.to(device)).cpu(), host(x), rtol=1e-3, atol=1e-3)
    assert torch.equal(there.cpu()(x), host(x))  # to(…) takes the mask along


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_verbs(device, scope, dtype, tmp_path):
    host, there = network().to(dtype), network().to(device, dtype)
    expected, plan = emp_torch.plan(host, scope=scope), emp_torch.plan(there, scope=scope)
    for name, mask in expected.masks.items():
        assert torch.equal(plan.masks[name].cpu(), mask)
        assert same_place(plan.masks[name], device)
    assert [e.sha256 for e in plan.entries] == [e.sha256 for e in expected.entries]
    assert [(e.n, e.k, e.zeros) for e in plan.entries] == [(e.n, e.k, e.zeros) for e in expected.entries]
    emp_torch.apply(there, plan)
    emp_torch.apply(host, plan)  # a plan from one device for a model on another
    assert emp_torch.verify(there) == emp_torch.verify(host) == ()
    assert all(torch.equal(a, b.cpu()) for a, b in zip(host.parameters(), there.parameters(), strict=True))
    place = emp_torch.save(there, tmp_path / "m.pt")
    for model in (network(1).to(dtype), network(1).to(device, dtype)):
        emp_torch.load(model, place)
        assert emp_torch.verify(model) == ()
        assert all(torch.equal(a.cpu(), b) for a, b in zip(model.parameters(), host.parameters(), strict=True))
    with torch.no_grad():
        there[4].weight += 1
    assert emp_torch.verify(there)
    emp_torch.recertify(there)
    assert emp_torch.verify(there) == ()


@pytest.mark.parametrize("criterion", ["wanda", "sensitivity", "taylor", "activation", "f_statistic"])
def test_criteria_are_as_on_the_host(device, criterion):
    x, y = torch.randn(30, 3, 8, 8), torch.arange(30) % 3
    found = []
    for place in ("cpu", device):
        model = network().double().to(place)
        batches = [(x[i : i + 10].double().to(place), y[i : i + 10].to(place)) for i in (0, 10, 20)]
        statistics = emp_torch.calibrate(
            model, batches, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), labels=lambda b: b[1]
        )
        weights = emp_torch.find_weights(model).weights
        scores = emp_torch.scores(weights, criterion, statistics=statistics)
        units = emp_torch.unit_f_statistics(weights, statistics)
        assert all(same_place(s, torch.device(place)) for s in (*scores.values(), *units.values()))
        found.append((scores, units))
        plan = emp_torch.prune(model, criterion=criterion, statistics=statistics, scope="row")
        assert plan.criterion == criterion
        for w in weights:
            mask = emp_core.select(scores[w.name].cpu().numpy(), scope="rows").mask
            assert np.array_equal(plan.masks[w.name].cpu().numpy(), mask)
    for here, there in zip(*found, strict=True):
        for name in here:
            torch.testing.assert_close(there[name].cpu(), here[name], rtol=1e-6, atol=1e-9)


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
}


def trained(model, optimizer, pruner, device, steps, start=0, dtype=None, scaler=None):
    for step in range(start, start + steps):
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(step)).to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(x).square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        pruner.step()
        yield


def still(pruner, optimizer):
    """Masked weights and their state are zero."""
    for w in pruner.weights:
        off = ~pruner.masks[w.name]
        assert not w.parameter[off].any()
        assert torch.isfinite(w.parameter).all()
        for value in optimizer.state[w.parameter].values():
            if torch.is_tensor(value) and value.shape == off.shape:
                assert not value[off].any()


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_gradual_pruning(device, name, scope):
    model = network().to(device)
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = emp_torch.GradualPruner(model, optimizer, sparsity=0.8, begin=2, steps=4, every=2, scope=scope)
    for _ in trained(model, optimizer, pruner, device, 12):
        still(pruner, optimizer)
        assert all(same_place(mask, device) for mask in pruner.masks.values())
    assert pruner.sparsity == pytest.approx(0.8, abs=0.02)
    pruner.finish()
    assert emp_torch.verify(model) == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_gradual_pruning_with_mixed_precision(device, dtype):
    if device.type == "cpu" and dtype == torch.float16:
        pytest.skip("float16 is for devices")
    model = network().to(device)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    pruner = emp_torch.GradualPruner(model, optimizer, begin=0, steps=3, every=2)  # EMP's own sparsity
    scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
    for _ in trained(model, optimizer, pruner, device, 8, dtype=dtype, scaler=scaler):
        still(pruner, optimizer)
    assert pruner.sparsity > 0.15


def test_gradual_pruning_of_bfloat16_weights(device):
    model = network().to(device, torch.bfloat16)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = emp_torch.GradualPruner(model, optimizer, sparsity=0.5, begin=0, steps=2, every=2)
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, device=device, dtype=torch.bfloat16)).float().square().mean().backward()
        optimizer.step()
        pruner.step()
        still(pruner, optimizer), step
    assert pruner.sparsity == pytest.approx(0.5, abs=0.02)
    pruner.finish()
    assert emp_torch.verify(model) == ()


def test_a_checkpoint_travels(device, tmp_path):
    options = {"sparsity": 0.8, "begin": 2, "steps": 5, "every": 2}
    model = network().to(device)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    pruner = emp_torch.GradualPruner(model, optimizer, **options)
    list(trained(model, optimizer, pruner, device, 7))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
    torch.save(state, tmp_path / "c.pt")
    for place in (torch.device("cpu"), device):
        held = torch.load(tmp_path / "c.pt", map_location="cpu", weights_only=True)
        again = network(1).to(place)
        other = OPTIMIZERS["adam"](again.parameters())
        resumed = emp_torch.GradualPruner(again, other, **options)
        again.load_state_dict(held["model"])
        other.load_state_dict(held["optimizer"])
        resumed.load_state_dict(held["pruner"])
        assert all(torch.equal(m.cpu(), pruner.masks[n].cpu()) for n, m in resumed.masks.items())
        list(trained(again, other, resumed, place, 7, start=7))
        still(resumed, other)
        assert resumed.sparsity == pytest.approx(0.8, abs=0.02)


class Block(nn.Module):
    """Attention of six heads, in one of two shapes, with a skip."""

    def __init__(self, kind):
        super().__init__()
        self.num_heads, self.head_dim, self.plain = 6, 4, kind == "plain"
        if self.plain:
            self.inner = nn.MultiheadAttention(24, 6, batch_first=True)
        else:
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x):
        if self.plain:
            return x + self.inner(x, x, x, need_weights=False)[0]
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        return x + self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["plain", "separate"])
def test_heads(device, kind):
    torch.manual_seed(0)
    first, x = Block(kind).double().eval(), torch.randn(2, 7, 24).double()
    expected = emp_torch.head_scores(emp_torch.find_heads(first))
    taylor = emp_torch.head_scores(emp_torch.find_heads(first), batches=[x], loss=lambda b: first(b).square().mean())
    there, moved = copy.deepcopy(first).to(device), x.to(device)
    (heads,) = emp_torch.find_heads(there)
    scores = emp_torch.head_scores([heads])[heads.name]
    torch.testing.assert_close(scores.cpu(), expected[heads.name], rtol=1e-9, atol=0)
    found = emp_torch.head_scores([heads], batches=[moved], loss=lambda b: there(b).square().mean())[heads.name]
    torch.testing.assert_close(found.cpu(), taylor[heads.name], rtol=1e-6, atol=1e-12)
    keep = torch.tensor([True, False, True, True, False, False], device=device)
    removed = copy.deepcopy(there)
    emp_torch.zero_heads(heads, keep)
    emp_torch.remove_heads(removed, emp_torch.find_heads(removed)[0], keep)
    assert all(same_place(p, device) for p in removed.parameters())
    torch.testing.assert_close(removed(moved), there(moved))
    chosen = emp_core.select({heads.name: scores}, scope="model")
    assert same_place(chosen.mask[heads.name], device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_attention_masks(device, dtype):
    logits = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(0)) * 2
    logits[0, 0, 3] = -torch.inf  # no key at all
    logits[:, :, :, 30:] = -torch.inf
    weights = attention.weights_of(logits.to(device, dtype))
    assert same_place(weights, device)
    assert weights.dtype == dtype
    expected = emp_core.select(wide(weights), scope=emp_core.Rows((0, 1, 2)))
    chosen = attention.edges(weights)
    assert np.array_equal(chosen.mask.cpu().numpy(), expected.mask)
    assert not chosen.mask[0, 0, 2, 30:].any()
    held = weights.detach().requires_grad_()
    pruned = attention.prune_weights(held)
    sums = pruned.float().sum(-1)
    assert bool(((sums - 1).abs() < 0.02).logical_or(sums == 0).all())
    pruned.float().square().sum().backward()
    assert torch.isfinite(held.grad).all()


def test_nodes_edges_and_places_of_arrays(device):
    g = torch.Generator().manual_seed(0)
    base, spline, out = (torch.randn(s, generator=g) for s in ((8, 5), (8, 5, 6), (3, 8)))
    expected = criteria.kan_nodes(criteria.kan_edges(base.numpy(), spline.numpy()), abs(out.numpy()))
    there = [t.to(device) for t in (base, spline, out)]
    nodes = criteria.kan_nodes(criteria.kan_edges(there[0], there[1]), there[2].abs())
    np.testing.assert_allclose(nodes.cpu().numpy(), expected, rtol=1e-6)
    keep = emp_core.select(nodes).mask
    before, after = kan.remove_nodes(
        {"base": there[0], "spline": there[1]}, {"out": there[2]}, keep, axes={"base": 0, "spline": 0, "out": 1}
    )
    left = int(keep.sum())
    assert before["spline"].shape == (left, 5, 6)
    assert after["out"].shape == (3, left)
    assert same_place(after["out"], device)
    picture = torch.rand(17, 23, generator=g)
    for scope in ("whole", "rows", "columns", emp_core.Blocks((4, 4)), emp_core.Groups(4, 2)):
        mask = emp_core.select(picture.to(device), scope=scope).mask
        assert same_place(mask, device)
        assert np.array_equal(mask.cpu().numpy(), emp_core.select(picture.numpy(), scope=scope).mask), scope


def test_export_carries_the_certificate(device, tmp_path):
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    emp_onnx = pytest.importorskip("emp_onnx", reason="what emp_onnx stands on is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)).to(device)
    emp_torch.prune(model)
    assert emp_torch.export(model, (torch.randn(3, 12, device=device),), tmp_path / "m.onnx") == ()
    assert emp_onnx.verify(tmp_path / "m.onnx").ok


def test_errors_name_what_is_wrong(device):
    model = network().to(device)
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(emp_core.PoolError, match=r"4\.weight"):
        emp_torch.plan(model)
    with pytest.raises(emp_core.PoolError, match="must be finite"):
        emp_torch.effective_global(pairs(model))
    assert all(isinstance(m.weight, nn.Parameter) for m, _ in pairs(model))
    if device.type != "cpu":
        with pytest.raises(emp_core.ArgumentError, match="one device"):
            emp_torch.effective_global([(nn.Linear(3, 3), "weight"), (nn.Linear(3, 3).to(device), "weight")])
