"""Gradual pruning: the schedule is followed, masked weights and their state stand still, checkpoints go on."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import emp_core  # noqa: E402
import emp_torch  # noqa: E402
from emp_torch import GradualPruner, GradualPruning  # noqa: E402

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
}


def parts(optimizer="adam"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    return model, OPTIMIZERS[optimizer](model.parameters())


def train(model, optimizer, pruner, steps, seed=0, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(seed + step)
        optimizer.zero_grad()
        model(torch.randn(8, 10, generator=generator)).square().mean().backward()
        optimizer.step()
        pruner.step()
        yield step + 1


def states(optimizer, weight):
    return {k: v for k, v in optimizer.state[weight.parameter].items() if torch.is_tensor(v) and v.dim() > 0}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_masked_weights_and_their_state_get_no_update(name):
    model, optimizer = parts(name)
    pruner = GradualPruner(model, optimizer, sparsity=0.8, begin=2, steps=4, every=3)
    before = {}
    for _ in train(model, optimizer, pruner, 25):
        for w in pruner.weights:
            off = ~pruner.masks[w.name]
            assert not w.parameter[off].any()
            for key, value in states(optimizer, w).items():
                if w.name in before and key in before[w.name][1]:
                    still = off & before[w.name][0]
                    assert torch.equal(value[still], before[w.name][1][key][still])
            before[w.name] = off.clone(), {k: v.clone() for k, v in states(optimizer, w).items()}
    assert all(bool(w.parameter[pruner.masks[w.name]].any()) for w in pruner.weights)


def test_the_cubic_ramp_is_followed_to_the_element():
    model, optimizer = parts()
    pruner = GradualPruner(model, optimizer, sparsity=0.9, begin=3, steps=5, every=4)
    wanted = emp_core.cubic_schedule(0.0, 0.9, begin=3, steps=5, every=4)
    for step in train(model, optimizer, pruner, 40):
        for w in pruner.weights:
            n = w.parameter.numel()
            assert int(pruner.masks[w.name].sum()) == n - round(wanted(step) * n)
    final = {name: mask.clone() for name, mask in pruner.masks.items()}
    for _ in train(model, optimizer, pruner, 10, start=40):
        pass
    assert all(torch.equal(mask, final[name]) for name, mask in pruner.masks.items())


def test_a_weight_masked_too_early_comes_back_with_its_value():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    pruner = GradualPruner(layer, optimizer, sparsity=lambda step: 0.25 if step else 0.0, begin=0, steps=9, every=1)
    layer.weight.grad = torch.zeros(1, 4)
    optimizer.step()
    pruner.step()
    assert pruner.masks["weight"].tolist() == [[True, True, True, False]]
    (layer(torch.ones(1, 4)).sum() * 0 + 1.5 * layer.weight[0, 2]).backward()
    optimizer.step()  # 2.0 becomes 0.5: less than the 1.0 that is kept aside
    pruner.step()
    assert layer.weight.tolist() == [[4.0, 3.0, 0.0, 1.0]]


def test_emps_own_sparsity_is_that_of_the_weights_at_the_end():
    model, optimizer = parts()
    pruner = GradualPruner(model, optimizer, begin=0, steps=3, every=5)
    for step in train(model, optimizer, pruner, 15):
        if step == 15:
            for w in pruner.weights:
                values = w.parameter.detach().numpy()
                assert (values != 0).sum() == int(pruner.masks[w.name].sum())
    assert 0.15 < pruner.sparsity < 0.6
    frozen = GradualPruner(copy.deepcopy(model), None, begin=0, steps=1, every=1, beta=0.7)
    dense = copy.deepcopy(model)
    values = {w.name: w.value.detach().numpy() for w in emp_torch.find_weights(dense).weights}
    frozen.step()
    for name, value in values.items():
        assert np.array_equal(frozen.masks[name].numpy(), emp_core.select(value, beta=0.7).mask)


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_scopes_and_beta_ramps(scope):
    model, optimizer = parts()
    ramp = emp_core.beta_schedule(1.5, 0.5, begin=0, steps=4, every=2)
    pruner = GradualPruner(model, optimizer, beta=ramp, begin=0, steps=4, every=2, scope=scope)
    seen = [pruner.sparsity]
    for _ in train(model, optimizer, pruner, 12):
        seen.append(pruner.sparsity)
    assert seen[-1] > seen[0]
    pruner.finish()
    assert emp_torch.verify(model) == ()
    assert not any(m._backward_hooks or m._forward_hooks for m in model.modules())
    with pytest.raises(emp_core.ArgumentError, match="before finish"):
        pruner.step()
    assert sum(int((w.parameter != 0).sum()) for w in pruner.weights) == sum(
        int(m.sum()) for m in pruner.masks.values()
    )


def test_a_checkpoint_goes_on_as_if_nothing_had_been():
    options = {"sparsity": 0.8, "begin": 2, "steps": 5, "every": 3}
    model, optimizer = parts()
    pruner = GradualPruner(model, optimizer, **options)
    list(train(model, optimizer, pruner, 9))
    held = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    list(train(model, optimizer, pruner, 20, start=9))

    again, other = parts()
    list(train(again, other, GradualPruner(again, other), 1))
    again, other = parts()
    resumed = GradualPruner(again, other, **options)
    again.load_state_dict(held[0])
    other.load_state_dict(held[1])
    resumed.load_state_dict(held[2])
    list(train(again, other, resumed, 20, start=9))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(emp_core.ArgumentError, match="of the same weights"):
        GradualPruner(nn.Linear(2, 2)).load_state_dict(held[2])


def test_a_criterion_of_ones_own_and_without_an_optimizer():
    model, _ = parts()
    pruner = GradualPruner(
        model, None, sparsity=0.5, begin=0, steps=1, every=1, criterion=lambda w: torch.rand_like(w.parameter)
    )
    pruner.step()
    assert abs(pruner.sparsity - 0.5) < 0.02
    with pytest.raises(emp_core.ArgumentError, match="criterion must give scores of the shape"):
        GradualPruner(model, None, criterion=lambda w: torch.ones(3))


def test_tied_and_attention_and_recurrent_weights():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(8, 2, batch_first=True), "lstm": nn.LSTM(8, 6, batch_first=True)}
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = GradualPruner(model, optimizer, sparsity=0.5, begin=0, steps=2, every=2)
    for _ in range(6):
        optimizer.zero_grad()
        x = torch.randn(2, 5, 8)
        h, _ = model["attention"](x, x, x)
        model["lstm"](h)[0].square().mean().backward()
        optimizer.step()
        pruner.step()
    assert all(int((w.parameter == 0).sum()) == w.parameter.numel() // 2 for w in pruner.weights)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"sparsity": 1.0}, "must be a sparsity"), ({"beta": 0.0}, "must be a finite number > 0"),
        ({"sparsity": 0.5, "beta": 1.0}, "got both"), ({"scope": "column"}, "scope must be one of"),
        ({"steps": 0}, "steps must be"), ({"every": 0}, "every must be"), ({"begin": -1}, "begin must be"),
        ({"initial": 1.0, "sparsity": 0.5}, "initial must be a sparsity"),
        ({"sparsity": 1.2}, "sparsity must be a sparsity in .*, got 1.2"), ({"beta": -1}, "beta must be .*, got -1"),
        ({"sparsity": lambda step: 0.5, "every": 0}, "every must be"), ({"begin": None}, "begin must be"),
        ({"beta": lambda step: 1.0, "steps": -1}, "steps must be"), ({"initial": None}, "initial must be"),
        ({"sparsity": "half"}, "sparsity must be a sparsity"),
        ({"weights": ()}, "must have something to prune"),
    ],
)  # fmt: skip
def test_wrong_options(options, what):
    model, optimizer = parts()
    with pytest.raises(emp_core.ArgumentError, match=what):
        GradualPruner(model, optimizer, **options)


def test_numbers_of_numpy_are_numbers():
    model, optimizer = parts()
    GradualPruner(model, optimizer, sparsity=np.float32(0.5), initial=np.float32(0.1), steps=np.int64(2))


def test_frozen_weights_are_pruned_too():
    model, optimizer = parts()
    model[0].requires_grad_(False)
    pruner = GradualPruner(model, optimizer, sparsity=0.5, begin=0, steps=2, every=2)
    for _ in train(model, optimizer, pruner, 6):
        pass
    pruner.finish()
    assert [int((w.parameter == 0).sum()) for w in pruner.weights] == [80, 24]
    assert emp_torch.verify(model) == ()


class Trainer:
    """What a trainer in the manner of Lightning does with its callbacks: calls every hook of each by name."""

    def __init__(self, callbacks, optimizers, accumulate=1):
        self.callbacks, self.optimizers, self.global_step, self.accumulate = callbacks, optimizers, 0, accumulate

    def call(self, hook, *args):
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args)

    def fit(self, model, batches):
        self.call("setup", model, "fit")
        self.call("on_fit_start", model)
        self.call("on_train_start", model)
        for i in range(batches):
            self.call("on_train_batch_start", model, None, i)
            model(torch.randn(4, 10)).square().mean().backward()
            if (i + 1) % self.accumulate == 0:
                self.optimizers[0].step()
                self.optimizers[0].zero_grad()
                self.global_step += 1
            self.call("on_train_batch_end", model, None, None, i)
        self.call("on_train_end", model)
        self.call("teardown", model, "fit")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_as_a_callback(accumulate):
    model, optimizer = parts()
    callback = GradualPruning(sparsity=0.75, begin=1, steps=4, every=2)
    Trainer([callback], [optimizer], accumulate).fit(model, 12 * accumulate)
    assert abs(callback.pruner.sparsity - 0.75) < 0.02
    assert callback.pruner.steps_done == 12
    assert emp_torch.verify(model) == ()
    resumed = GradualPruning("0", sparsity=0.75, begin=1, steps=4, every=2)
    assert resumed.state_key == "GradualPruning{0}"
    resumed.load_state_dict(resumed.state_dict())
    with pytest.raises(emp_core.ArgumentError, match="one optimizer, got 2"):
        resumed.on_train_start(Trainer([], [optimizer, optimizer]), model)
    with pytest.raises(AttributeError):
        callback.nonsense  # noqa: B018
