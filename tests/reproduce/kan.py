"""A KAN [784, 64, 10] on MNIST: edges and hidden nodes by the rule, nodes physically removed."""

from __future__ import annotations

import copy

import torch
from torch import nn

import emp_core
from emp_core import criteria, kan
from tests.benchmarks._report import table

from ._data import Options, Split, accuracy, batches, mnist, once
from ._kan import KanLayer

PAPER = "97.15 → 94.36, nodes 64 → 52"
NODES = 52  # that the paper keeps


def trained(split: Split, options: Options, hidden: int = 64) -> nn.Sequential:
    """AdamW 1e-3, weight decay 1e-4, learning rate × 0.8 per epoch, 10 epochs, batch 64."""
    torch.manual_seed(0)
    model = nn.Sequential(KanLayer(784, hidden), KanLayer(hidden, 10))
    once(model, "kan", options, lambda: _train(model, split, options.steps(10)))
    return model


def _train(model: nn.Module, split: Split, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    generator, loss = torch.Generator().manual_seed(0), nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        for index in batches(len(split.x), 64, generator):
            optimizer.zero_grad()
            loss(model(split.x[index]), split.y[index]).backward()
            optimizer.step()
        schedule.step()


def node_scores(model: nn.Sequential, both: str, x: torch.Tensor | None = None) -> torch.Tensor:
    """One score per hidden node, from the weights of its edges; with images, from what its edges say of these."""
    into, out = [criteria.kan_edges(layer.base, layer.scaled) for layer in model] if x is None else said(model, x)
    return criteria.kan_nodes(into.detach(), out.detach(), both=both)


@torch.no_grad()
def unscaled_scores(model: nn.Sequential) -> torch.Tensor:
    """The smaller of what comes in and what goes out, summed over edges, from coefficients without their scale."""
    into, out = (criteria.kan_edges(None, layer.spline) for layer in model)
    return torch.minimum(into.sum(1), out.sum(0))


@torch.no_grad()
def said(model: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    """Of each layer the standard deviation of every edge's function, (out, in), as pykan measures edges."""
    found = []
    for layer in model:
        total, squares = torch.zeros_like(layer.base), torch.zeros_like(layer.base)
        for some in x.split(25):
            edges = torch.einsum("bic,oic->boi", layer.bases(some), layer.scaled)
            edges += layer.base * nn.functional.silu(some)[:, None]
            total += edges.sum(0)
            squares += edges.square().sum(0)
        found.append((squares / len(x) - (total / len(x)).square()).clamp(min=0).sqrt())
        x = layer(x)
    return found


@torch.no_grad()
def without_nodes(model: nn.Sequential, keep: torch.Tensor) -> nn.Sequential:
    """The network with these hidden nodes only."""
    names = [dict.fromkeys(("base", "scale", "spline"), axis) for axis in (0, 1)]
    first, last = ({f"{i}.{n}": getattr(layer, n).detach() for n in names[i]} for i, layer in enumerate(model))
    axes = {f"{i}.{n}": axis for i in (0, 1) for n, axis in names[i].items()}
    first, last = kan.remove_nodes(first, last, keep, axes=axes)
    smaller = nn.Sequential(KanLayer(784, int(keep.sum())), KanLayer(int(keep.sum()), 10))
    smaller.load_state_dict({**smaller.state_dict(), **first, **last})
    return smaller


@torch.no_grad()
def without_edges(model: nn.Sequential, beta: float) -> tuple[nn.Sequential, float]:
    """The network with the edges that the rule keeps, layer by layer, and the sparsity."""
    smaller, kept, n = copy.deepcopy(model), 0, 0
    for layer in smaller:
        chosen = emp_core.select(criteria.kan_edges(layer.base, layer.scaled), beta=beta)
        layer.base.mul_(chosen.mask)
        layer.spline.mul_(chosen.mask[..., None])
        kept, n = kept + int(chosen.k), n + int(chosen.n)
    return smaller, 1 - kept / n


@torch.no_grad()
def at_equal_nodes(model: nn.Sequential, split: Split, nodes: int, draws: int) -> str:
    """What is left when so many nodes are kept: the best by several scores, and some at random."""

    hidden = torch.cat([model[0](x) for x in split.x_test.split(1000)])

    def measured(keep: torch.Tensor) -> tuple[float, float]:
        found = without_nodes(model, keep)[1](hidden[:, keep])
        right = 100 * float((found.argmax(1) == split.y_test).double().mean())
        return right, float(nn.functional.cross_entropy(found, split.y_test))

    ways = {
        f"{both} of in and out, {of}": node_scores(model, both, split.x[:500] if of == "activations" else None)
        for of in ("weights", "activations")
        for both in ("min", "max")
    }
    ways["min of in and out summed, coefficients without their scale"] = unscaled_scores(model)
    rows = []
    for name, scores in ways.items():
        right, loss = measured(emp_core.top_mask(scores, nodes))
        rows.append([name, f"{right:.2f}", f"{loss:.3f}"])
    generator, n = torch.Generator().manual_seed(0), len(scores)
    found = []
    for _ in range(draws):
        keep = torch.zeros(n, dtype=torch.bool)
        keep[torch.randperm(n, generator=generator)[:nodes]] = True
        found.append(measured(keep))
    right, loss = torch.tensor(found, dtype=torch.float64).T
    rows.append(
        [
            f"at random, {draws} draws",
            f"{right.mean():.2f} ± {right.std():.2f} ({right.min():.2f} to {right.max():.2f})",
            f"{loss.mean():.3f} ± {loss.std():.3f}",
        ]
    )
    rows.append(["paper", "94.36", "0.181"])
    return table([f"{nodes} nodes kept", "accuracy", "loss"], rows)


def run(options: Options) -> str:
    """The tables."""
    plain = mnist(options)
    split = Split(plain.x * 2 - 1, plain.y, plain.x_test * 2 - 1, plain.y_test)
    model = trained(split, options)
    dense = accuracy(model, split.x_test, split.y_test)
    rows = [["dense", f"{dense:.2f}", "64", "", ""]]
    for both, of in (("min", "weights"), ("max", "weights"), ("min", "activations"), ("max", "activations")):
        scores = node_scores(model, both, split.x[:500] if of == "activations" else None)
        for beta in (0.75, 1.0, 1.25):
            chosen = emp_core.select(scores, beta=beta)
            smaller = without_nodes(model, chosen.mask)
            theirs = PAPER if both == "max" and beta == 1 else ""
            rows.append(
                [
                    f"nodes, {both} of in and out, {of}, β = {beta:g}",
                    f"{accuracy(smaller, split.x_test, split.y_test):.2f}",
                    f"{int(chosen.k)}",
                    f"{100 * float(chosen.sparsity):.1f} %",
                    theirs,
                ]
            )
    for beta in (0.5, 0.75, 1.0, 1.25):
        smaller, sparsity = without_edges(model, beta)
        rows.append(
            [
                f"edges, β = {beta:g}",
                f"{accuracy(smaller, split.x_test, split.y_test):.2f}",
                "64",
                f"{100 * sparsity:.1f} %",
                "",
            ]
        )
    first = table(["", "accuracy", "hidden nodes", "sparsity", "paper"], rows)
    return first + "\n\n" + at_equal_nodes(model, split, NODES, options.steps(40))
