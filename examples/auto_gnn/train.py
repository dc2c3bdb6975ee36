"""Auto-GNN: a supernet of graph networks, with constrained or unconstrained sharing of weights.

    python examples/auto_gnn/train.py run --data graph_cora.npz      # what the results lack
    python examples/auto_gnn/train.py table --data graph_cora.npz    # τ, and paired differences

A layer chooses aggregator, activation, number of heads and their width. Unconstrained, all subnets
share the weights of a layer, of which heads and widths take slices. Constrained, as in Auto-GNN,
only homogeneous layers do: those of the same aggregator and activation. Momentum separation takes
the same rule. Subnets are ranked by their accuracy on validation nodes, against that of networks
which were trained alone.

Source: Zhou et al., "Auto-GNN: Neural Architecture Search of Graph Neural Networks", 2019.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graphs import Graph, load
from torch import nn
from torch.nn import functional as F
from torch_geometric.utils import scatter, softmax

from nas_dynamic import (
    Architecture,
    CaLR,
    DynamicTraining,
    MomentumSeparation,
    SearchSpace,
    UniformSampler,
)
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.ranking import kendall_tau
from nas_dynamic.complexity import Complexity, lookup, population
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

LAYERS = (1, 2)
CHOICES = {
    "aggregator": ["gcn", "mean", "max", "gat"],
    "activation": ["relu", "elu", "tanh"],
    "heads": [1, 2, 4],
    "width": [4, 8, 16],
}
SPACE = SearchSpace({f"{name}{n}": options for n in LAYERS for name, options in CHOICES.items()})
ACTIVATIONS = {"relu": F.relu, "elu": F.elu, "tanh": torch.tanh}
HEADS, WIDTH = 4, 16
ARMS = {
    "unconstrained": (),
    "constrained": ("unconstrained",),
    "constrained-calr": ("constrained",),
    "constrained-calr-ms": ("constrained", "constrained-calr"),
}
"""Arms, and what the table compares each with."""


def homogeneous(architecture: Architecture) -> str:
    """Return the group of a subnet: aggregator and activation of the first layer."""
    return f"{architecture['aggregator1']} {architecture['activation1']}"


class Layer(nn.Module):
    """Weights of the widest layer, (heads, width, inputs), and of attention, (heads, width)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(HEADS, WIDTH, inputs))
        self.attention = nn.Parameter(torch.empty(2, HEADS, WIDTH))
        nn.init.uniform_(self.weight, -((6 / (inputs + 16)) ** 0.5), (6 / (inputs + 16)) ** 0.5)
        nn.init.normal_(self.attention, std=0.1)

    def forward(
        self, x: torch.Tensor, graph: Graph, aggregator: str, heads: int, width: int
    ) -> torch.Tensor:
        """Return (nodes, heads · width) from features of nodes."""
        weight = self.weight[:heads, :width, : x.shape[1]].reshape(heads * width, -1)
        h = (x @ weight.T).view(-1, heads, width)
        (source, target), nodes = graph.edges, len(h)
        if aggregator in ("mean", "max"):
            h = scatter(h[source], target, 0, nodes, aggregator)
        else:
            share = graph.norm[:, None]
            if aggregator == "gat":
                to, of = (h * self.attention[:, None, :heads, :width]).sum(-1)
                share = softmax(F.leaky_relu(to[target] + of[source], 0.2), target, num_nodes=nodes)
            h = scatter(h[source] * share[..., None], target, 0, nodes, "sum")
        return h.flatten(1)


class Supernet(nn.Module):
    """Two layers of graph convolution and a classifier of nodes."""

    def __init__(self, inputs: int, classes: int, constrained: bool) -> None:
        super().__init__()
        self.constrained = constrained
        kinds = itertools.product(CHOICES["aggregator"], CHOICES["activation"])
        names = [" ".join(kind) for kind in kinds] if constrained else ["all"]
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: Layer(n) for name in names}) for n in (inputs, HEADS * WIDTH)
        )
        self.head = nn.Linear(HEADS * WIDTH, classes)

    def forward(self, graph: Graph, architecture: Architecture) -> torch.Tensor:
        """Return logits, (nodes, classes)."""
        x = graph.x
        for n, layers in zip(LAYERS, self.layers, strict=True):
            aggregator, activation, heads, width = (architecture[f"{k}{n}"] for k in CHOICES)
            layer = layers[f"{aggregator} {activation}" if self.constrained else "all"]
            x = ACTIVATIONS[activation](layer(x, graph, aggregator, heads, width))
            x = F.dropout(x, 0.5, self.training)
        return F.linear(x, self.head.weight[:, : x.shape[1]], self.head.bias)


def parameters(inputs: int, classes: int) -> Complexity:
    """Return architecture → parameters of the subnet alone."""

    def count(a: Architecture) -> int:
        total, before = 0, inputs
        for n in LAYERS:
            out = a[f"heads{n}"] * a[f"width{n}"]
            total += before * out + 2 * out * (a[f"aggregator{n}"] == "gat")
            before = out
        return total + (before + 1) * classes

    return lookup(SPACE, count)


@torch.no_grad()
def accuracy(model: Supernet, graph: Graph, architecture: Architecture, split: str) -> float:
    nodes = graph.splits[split]
    return float((model(graph, architecture)[nodes].argmax(1) == graph.y[nodes]).float().mean())


def train(
    graph: Graph, arm: str, updates: int, seed: int, alone: Architecture | None = None
) -> Supernet:
    """Train a supernet, or one subnet alone; without CaLR the lr decays linearly, for all alike."""
    torch.manual_seed(seed)
    inputs, classes = graph.x.shape[1], int(graph.y.max()) + 1
    model = Supernet(inputs, classes, constrained=arm.startswith("constrained"))
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=5e-4)
    sampler, sampled, size = UniformSampler(SPACE, seed), [], parameters(inputs, classes)
    calr = CaLR(
        size,
        total_steps=updates,
        population=population(SPACE, size),
        gamma_max=4.0 if "calr" in arm else 1.0,
    )
    momentum = MomentumSeparation(homogeneous) if arm.endswith("ms") else None
    DynamicTraining(optimizer, lambda: sampled[-1], calr=calr, momentum=momentum)
    nodes = graph.splits["train"]
    for _ in range(updates):
        sampled[:] = [alone or sampler.sample()]
        optimizer.zero_grad()
        F.cross_entropy(model(graph, sampled[-1])[nodes], graph.y[nodes]).backward()
        optimizer.step()
    return model.eval()


def run(options: argparse.Namespace) -> None:
    """Train what the results lack: networks alone, then every arm of a seed."""
    torch.set_num_threads(1)
    graph, name, generator = load(options.data), Path(options.data).stem, np.random.default_rng(0)
    subnets = [SPACE.sample(generator) for _ in range(options.subnets)]

    def row(arm: str, seed: int) -> dict[str, Any]:
        if arm == "alone":
            models = (train(graph, arm, options.epochs, 100 + seed, alone=a) for a in subnets)
            found = [accuracy(m, graph, a, "test") for m, a in zip(models, subnets, strict=True)]
        else:
            model = train(graph, arm, options.updates, seed)
            found = [accuracy(model, graph, a, "val") for a in subnets]
        return {"accuracies": [round(v, 4) for v in found]}

    jobs = [("alone", seed) for seed in range(options.alone_seeds)]
    jobs += [(arm, seed) for seed in range(options.seeds) for arm in ARMS]
    complete(options.results, jobs, row, data=name)


def table(options: argparse.Namespace) -> None:
    """Print τ of each arm to the networks alone, and its differences to the arm before."""
    graph, name = load(options.data), Path(options.data).stem
    rows = read_rows(options.results, data=name)
    values = {job: np.array(row["accuracies"]) for job, row in rows.items()}
    alone = np.stack([v for (arm, _), v in sorted(values.items()) if arm == "alone"])
    truth, half = alone.mean(0), len(alone) // 2
    generator = np.random.default_rng(0)
    subnets = [SPACE.sample(generator) for _ in range(alone.shape[1])]
    size = parameters(graph.x.shape[1], int(graph.y.max()) + 1)
    print(
        f"{name}: {len(truth)} subnets alone, test accuracy {truth.min():.3f} to "
        f"{truth.max():.3f}; τ of half of their seeds to the other half "
        f"{kendall_tau(alone[:half].mean(0), alone[half:].mean(0)):.3f}; "
        f"τ of the parameter count {kendall_tau([size(a) for a in subnets], truth):.3f}"
    )
    tau = {k: kendall_tau(v, truth) for k, v in values.items() if k[0] != "alone"}
    for arm, others in ARMS.items():
        seeds = common_seeds(tau, [arm, *others])
        mean = mean_estimate([100 * values[arm, s].mean() for s in seeds]).value
        line = f"{arm}: {len(seeds)} seeds, τ {mean_estimate([tau[arm, s] for s in seeds]):.3f}"
        for other in others:
            difference = Difference(np.array([tau[arm, s] - tau[other, s] for s in seeds]))
            line += f", less {other} {difference:+.3f}"
        print(f"{line}; mean validation accuracy {mean:.1f}%")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data", default="digits", help="digits, or an .npz file of a graph")
    parser.add_argument("--updates", type=int, default=600, help="of a supernet")
    parser.add_argument("--epochs", type=int, default=60, help="of a network alone")
    parser.add_argument("--subnets", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alone-seeds", type=int, default=4)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.jsonl")
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
