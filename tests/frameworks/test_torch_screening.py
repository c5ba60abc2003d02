"""Screening in PyTorch: sums over batches give the F-statistic of all samples; connections and channels."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

import emp_core  # noqa: E402
import emp_torch  # noqa: E402
from emp_core import criteria  # noqa: E402
from emp_torch.screening import ClassSums  # noqa: E402


@given(st.data(), st.integers(2, 5), st.integers(0, 99))
def test_sums_over_batches_are_as_all_at_once(data, classes, seed):
    r = torch.Generator().manual_seed(seed)
    n = data.draw(st.integers(classes + 1, 40))
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=r)])
    a = torch.randn(n, 3, generator=r, dtype=torch.float64) + data.draw(st.sampled_from([0.0, 3.0, 1e4]))
    a[:, 1] += labels
    a[:, 2] = data.draw(st.sampled_from([0.0, 0.1, -7.0]))  # nothing varies
    sums = ClassSums.of(a[:2])
    for i in range(0, n, 7):
        sums.add(a[i : i + 7], labels[i : i + 7])
    expected = criteria.f_statistic(a.numpy(), labels.numpy())
    assert sums.f_statistic().numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def test_connections_have_the_f_of_what_they_read_and_channels_their_own():
    model, x, y = network(), torch.randn(60, 4, 8, 8), torch.arange(60) % 3
    x[:, 1] += y[:, None, None]
    batches = [(x[i : i + 25], y[i : i + 25]) for i in range(0, 60, 25)]
    statistics = emp_torch.calibrate(model, batches, forward=lambda m, b: m(b[0]), labels=lambda b: b[1])
    weights = emp_torch.find_weights(model).weights
    units = emp_torch.unit_f_statistics(weights, statistics)
    with torch.no_grad():
        seen = {"0.weight": (x.mean((2, 3)), model[0](x).mean((2, 3))), "4.weight": (model[:4](x), model(x))}
    for name, (before, after) in seen.items():
        torch.testing.assert_close(units[name], torch.from_numpy(criteria.f_statistic(after, y)), rtol=1e-4, atol=1e-6)
        f = torch.from_numpy(criteria.f_statistic(before, y))
        value = model.get_parameter(name).detach()
        if name == "0.weight":  # outputs 0 to 2 read inputs 0 and 1, the others 2 and 3
            f = torch.stack([f[:2]] * 3 + [f[2:]] * 3).reshape(6, 2, 1, 1)
        expected = criteria.combined(value.double(), f).float()
        found = emp_torch.scores(weights, "f_statistic", statistics=statistics)[name]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    plan = emp_torch.prune(model, criterion="f_statistic", statistics=statistics)
    assert plan.criterion == "f_statistic"
    assert emp_torch.verify(model) == ()


def test_what_is_refused():
    model, x = network(), torch.randn(5, 4, 8, 8)
    with pytest.raises(emp_core.ArgumentError, match="one class for each of the 5 samples"):
        emp_torch.calibrate(model, [x], labels=lambda _: torch.zeros(4))
    one = emp_torch.calibrate(model, [x], labels=lambda _: torch.zeros(5))
    with pytest.raises(emp_core.ArgumentError, match="at least 2 classes"):
        emp_torch.plan(model, criterion="f_statistic", statistics=one)
    with pytest.raises(emp_core.ArgumentError, match="or there were no labels"):
        emp_torch.plan(model, criterion="f_statistic", statistics=emp_torch.calibrate(model, [x]))


def test_inputs_by_name_and_every_use_of_a_tied_weight_are_counted():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(input=x).tanh())

    torch.manual_seed(0)
    model, x = Named(), torch.randn(3, 4)
    y = model.first(x).tanh()
    statistics = emp_torch.calibrate(model, [x])
    expected = sum(v.detach().double().square().sum(0) for v in (x, y))
    torch.testing.assert_close(statistics.inputs["first.weight"], expected)


def test_activation_of_a_grouped_transposed_convolution_is_that_of_its_output_channels():
    torch.manual_seed(0)
    model, x = nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)
    statistics = emp_torch.calibrate(model, [x])
    found = emp_torch.scores(emp_torch.find_weights(model).weights, "activation", statistics=statistics)["weight"]
    norms, weight = model(x).detach().square().sum((0, 2, 3)).sqrt(), model.weight.detach().abs()
    for i in range(4):
        for j in range(3):
            torch.testing.assert_close(found[i, j], weight[i, j] * norms[3 * (i // 2) + j])
