"""Would coasting pay if it were put off? `python -m benchmarks.speed.lazy_coasting`.

An idle parameter of SGD with Nesterov momentum and weight decay moves on linearly: an update of
group g maps (w, m_g) to (w − lr (λw + βm'), m') with m' = βm_g + λw. All elements of a tensor
share these coefficients, so the updates of an idle time compose to one matrix of groups + 1 rows,
which can be applied when the parameter is next used. This compares the two on tensors alone,
without a model: equal results, to rounding, and the time of all updates.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

BETA, DECAY, LR = 0.9, 5e-4, 0.025


class Eager:
    """Every idle tensor moves in every update."""

    def __init__(self, tensors: list[torch.Tensor], groups: int) -> None:
        self.weights = [tensor.clone() for tensor in tensors]
        self.momenta = [[torch.zeros_like(t) for t in tensors] for _ in range(groups)]

    def update(self, group: int, lr: float, used: list[int], gradients: list[torch.Tensor]) -> None:
        """One update; `used` are the tensors of the subnet."""
        idle = sorted(set(range(len(self.weights))) - set(used))
        _sgd([self.weights[i] for i in idle], [self.momenta[group][i] for i in idle], None, lr)
        _sgd([self.weights[i] for i in used], [self.momenta[group][i] for i in used], gradients, lr)

    def use(self, used: list[int]) -> None:
        """Nothing to do: all are up to date."""


class Lazy(Eager):
    """Idle tensors keep the matrix of what they missed."""

    def __init__(self, tensors: list[torch.Tensor], groups: int) -> None:
        super().__init__(tensors, groups)
        self.missed = np.tile(np.eye(groups + 1), (len(tensors), 1, 1))
        self.behind = np.zeros(len(tensors), bool)

    def update(self, group: int, lr: float, used: list[int], gradients: list[torch.Tensor]) -> None:
        """One update that notes what idle tensors miss."""
        idle = np.ones(len(self.weights), bool)
        idle[used] = False
        weight, momentum = self.missed[idle, 0], self.missed[idle, group + 1]
        momentum = BETA * momentum + DECAY * weight
        self.missed[idle, 0] = weight - lr * (DECAY * weight + BETA * momentum)
        self.missed[idle, group + 1] = momentum
        self.behind |= idle
        _sgd([self.weights[i] for i in used], [self.momenta[group][i] for i in used], gradients, lr)

    def use(self, used: list[int]) -> None:
        """Bring tensors up to date."""
        for i in used:
            if self.behind[i]:
                self._apply(i)

    def _apply(self, i: int) -> None:
        parts = [self.weights[i], *(momenta[i] for momenta in self.momenta)]
        matrix = self.missed[i]
        changed = np.flatnonzero((matrix != np.eye(len(matrix))).any(1))
        values = []
        for row in changed:
            terms = np.flatnonzero(matrix[row])
            value = parts[terms[0]] * matrix[row, terms[0]]
            for term in terms[1:]:
                value.add_(parts[term], alpha=matrix[row, term])
            values.append(value)
        for row, value in zip(changed, values, strict=True):
            parts[row].copy_(value)
        self.missed[i] = np.eye(len(matrix))
        self.behind[i] = False


def _sgd(
    weights: list[torch.Tensor],
    momenta: list[torch.Tensor],
    gradients: list[torch.Tensor] | None,
    lr: float,
) -> None:
    if not weights:
        return
    decayed = torch._foreach_mul(weights, DECAY)
    if gradients is not None:
        torch._foreach_add_(decayed, gradients)
    torch._foreach_mul_(momenta, BETA)
    torch._foreach_add_(momenta, decayed)
    torch._foreach_add_(decayed, momenta, alpha=BETA)
    torch._foreach_add_(weights, decayed, alpha=-lr)


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    print(
        f"{'tensors':>8} {'numel':>8} {'groups':>7} {'candidates':>10}   {'eager':>9} "
        f"{'lazy':>9}   ratio   greatest difference"
    )
    for tensors, numel in ((200, 1_000), (200, 30_000), (50, 1_000_000)):
        for groups, candidates in ((1, 5), (5, 5), (1, 20), (5, 20)):
            _compare(tensors, numel, groups, candidates, options.updates)


def _compare(tensors: int, numel: int, groups: int, candidates: int, updates: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(numel, generator=generator) for _ in range(tensors)]
    gradient = [torch.randn(numel, generator=generator) for _ in range(tensors)]
    draw = np.random.default_rng(0)
    ways = [Eager(start, groups), Lazy(start, groups)]
    seconds: list[list[float]] = [[], []]
    for number in range(updates):
        used = np.flatnonzero(draw.integers(candidates, size=tensors) == 0).tolist()
        group, lr = int(draw.integers(groups)), LR * (1 - number / updates) ** 2
        for k in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            ways[k].use(used)
            ways[k].update(group, lr, used, [gradient[i] for i in used])
            seconds[k].append(time.perf_counter() - began)
    for way in ways:
        way.use(list(range(tensors)))
    difference = max(
        float((a - b).abs().max() / a.abs().max())
        for a, b in zip(ways[0].weights, ways[1].weights, strict=True)
    )
    eager, lazy = (float(np.mean(values)) * 1e3 for values in seconds)
    print(
        f"{tensors:8} {numel:8} {groups:7} {candidates:10}   {eager:6.2f} ms {lazy:6.2f} ms   "
        f"{lazy / eager:5.2f}   {difference:.1e}",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.lazy_coasting", description=__doc__
    )
    parser.add_argument("--updates", type=int, default=60)
    return parser


if __name__ == "__main__":
    main()
