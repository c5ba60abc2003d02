"""A graph network of two layers on Cora: weights, and edges of the graph scored by their attention-free share of each
node's sum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import emp_core
import emp_torch
from tests.benchmarks._report import table

from ._data import Options


class Gcn(nn.Module):
    """``A·relu(A·X·W₀)·W₁`` with dropout (Kipf and Welling, arXiv 1609.02907)."""

    def __init__(self, inputs: int, classes: int, hidden: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, classes, bias=False)
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.xavier_uniform_(self.last.weight)

    def hidden(self, x: Tensor, a: Tensor) -> Tensor:
        """What the nodes say after one layer."""
        return F.relu(torch.sparse.mm(a, self.first(F.dropout(x, 0.5, self.training))))

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """Logits of every node."""
        return torch.sparse.mm(a, self.last(F.dropout(self.hidden(x, a), 0.5, self.training)))


def adjacency(edges: np.ndarray, n: int, keep: np.ndarray | None = None) -> Tensor:  # type: ignore[type-arg]
    """Normalised as if nothing were removed: D^-½ (A + I) D^-½, without the edges that are not kept."""
    rows = np.concatenate([edges[:, 0], np.arange(n)])
    columns = np.concatenate([edges[:, 1], np.arange(n)])
    degree = np.bincount(rows, minlength=n).astype(np.float64)
    values = (degree[rows] * degree[columns]) ** -0.5
    on = np.ones(len(rows), bool) if keep is None else np.concatenate([keep, np.ones(n, bool)])
    index = torch.from_numpy(np.stack([rows[on], columns[on]]))
    return torch.sparse_coo_tensor(
        index, torch.from_numpy(values[on].astype(np.float32)), (n, n), check_invariants=True
    ).coalesce()


def run(options: Options) -> str:
    """The table."""
    held = np.load(options.data / "graph" / "cora.npz")
    x, y, edges = torch.from_numpy(held["X"]), torch.from_numpy(held["y"]), held["edges"]
    x = x / x.sum(1, keepdim=True).clamp(min=1)
    n, seeds, results = len(x), range(1 if options.quick else 5), dict[str, list[tuple[float, float]]]()
    whole = adjacency(edges, n)

    def score(model: Gcn, a: Tensor) -> float:
        model.eval()
        with torch.no_grad():
            found = model(x, a).argmax(1)
        return 100 * float((found[held["test"]] == y[held["test"]]).float().mean())

    for seed in seeds:
        torch.manual_seed(seed)
        model = Gcn(x.shape[1], int(y.max()) + 1)
        optimizer = torch.optim.Adam(
            [{"params": model.first.parameters(), "weight_decay": 5e-4}, {"params": model.last.parameters()}], 0.01
        )
        for _ in range(options.steps(200)):
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x, whole)[held["train"]], y[held["train"]]).backward()
            optimizer.step()
        results.setdefault("dense", []).append((score(model, whole), 0.0))
        model.eval()
        with torch.no_grad():
            size = model.hidden(x, whole).norm(dim=1).numpy()
        degree = np.bincount(edges[:, 0], minlength=n) + 1.0
        strength = size[edges[:, 1]] / np.sqrt(degree[edges[:, 0]] * degree[edges[:, 1]])  # what an edge brings
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for beta in (0.5, 0.75, 1.0):
            for scope in ("labels", "whole"):
                layout = emp_core.Labels(edges[:, 0]) if scope == "labels" else "whole"
                keep = emp_core.select(strength.astype(np.float64), beta=beta, scope=layout).mask
                name = "per node" if scope == "labels" else "of the graph"
                results.setdefault(f"edges, {name}, β = {beta:g}", []).append(
                    (score(model, adjacency(edges, n, np.asarray(keep))), 1 - float(np.mean(keep)))
                )
            for scope in ("tensor", "model"):
                plan = emp_torch.prune(model, beta=beta, scope=scope)
                results.setdefault(f"weights, scope {scope}, β = {beta:g}", []).append(
                    (score(model, whole), plan.total.sparsity)
                )
                with torch.no_grad():
                    for parameter_name, p in model.named_parameters():
                        p.copy_(before[parameter_name])
    rows = []
    for name, found in sorted(results.items(), key=lambda item: (item[0] != "dense", item[0])):
        values, removed = np.array(found).T
        rows.append(
            [
                name,
                f"{values.mean():.1f} ± {values.std():.1f}",
                f"{100 * removed.mean():.1f} %" if name != "dense" else "",
            ]
        )
    return table(["", f"accuracy, {len(seeds)} seeds", "sparsity"], rows)
