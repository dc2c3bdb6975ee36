"""The arms: what is compared, each as options of `DynamicTraining`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from benchmarks.nb201.progress import Progress
from benchmarks.nb201.supernet import OPERATIONS, SPACE, depth, parameters
from nas_dynamic import Architecture, CaLR

__all__ = ["ARMS", "Arm", "mean_gamma"]

GAMMA_MAX = 4.0
PEAK, MOMENTUM = 0.025, 0.9
"""Learning rate and momentum of the usual training."""


@dataclass(frozen=True)
class Arm:
    """One way to set the learning rate and the momentum.

    Attributes:
        curve: decay curve, as in `CaLR`.
        gamma: `"one"`, 1 for every subnet; `"mean"`, CaLR's mean over the space for every subnet;
            `"complexity"`, CaLR; `"rank"`, CaLR by the rank of the complexity over the space;
            `"measured"`, by the rank of how fast the training losses of a subnet still fall.
        separate: whether momentum is separate.
        gamma_max: γ of the smallest subnet, the inverse of that of the largest.
        momentum: coefficient β of the optimizer's momentum.
        complexity: what CaLR measures a subnet by.
        anneal: share of the budget, its last, over which every lr also goes to 0 linearly.
    """

    curve: str
    gamma: Literal["one", "mean", "complexity", "rank", "measured"]
    separate: bool = False
    gamma_max: float = GAMMA_MAX
    momentum: float = MOMENTUM
    complexity: Callable[[Architecture], float] = parameters
    anneal: float = 0.0

    @property
    def lr(self) -> float:
        """Peak learning rate: a gradient moves the weights by lr / (1 − β) in all, in every arm."""
        return PEAK * (1 - self.momentum) / (1 - MOMENTUM)

    def calr(self, updates: int) -> CaLR:
        """Return the arm's learning rate over a budget of updates."""
        kind = functools.partial(_Annealed, share=self.anneal) if self.anneal else CaLR
        if self.gamma == "measured":
            progress = Progress(updates)
            return kind(
                progress,
                population=progress.population,
                total_steps=updates,
                curve=self.curve,
                gamma_max=self.gamma_max,
            )
        make = functools.partial(kind, self.complexity, total_steps=updates, curve=self.curve)
        complexities = _complexities(self.complexity)
        if self.gamma == "rank":
            return make(population=complexities, gamma_max=self.gamma_max)
        bounds = complexities.min(), complexities.max()
        if self.gamma == "complexity":
            return make(bounds=bounds, gamma_max=self.gamma_max)
        gamma = mean_gamma() if self.gamma == "mean" else 1.0
        return make(bounds=bounds, gamma_max=gamma, gamma_min=gamma)


class _Annealed(CaLR):
    """CaLR whose lr goes to 0 linearly, for every subnet, over the last `share` of the steps."""

    def __init__(self, *args: Any, share: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.share = share

    def factor_of(self, gamma: float, step: int, lr_ratio: float = 1.0) -> float:
        assert self.total_steps is not None
        left = max(1 - step / self.total_steps, 0.0)
        return super().factor_of(gamma, step, lr_ratio) * min(left / self.share, 1.0)

    def definition(self) -> dict[str, Any]:
        return super().definition() | {"share": self.share}


def _size_and_depth(architecture: Architecture) -> float:
    """Mean rank of the architecture in the space, by its parameter count and by its depth."""
    measures = (parameters, depth)
    return sum(_mean_ranks(measure)[measure(architecture)] for measure in measures) / 2


@functools.cache
def _mean_ranks(measure: Callable[[Architecture], float]) -> dict[float, float]:
    complexities = _complexities(measure)
    return dict(zip(complexities.tolist(), rankdata(complexities).tolist(), strict=True))


ARMS = {
    "static": Arm("cosine", "one"),
    "poly": Arm("polynomial", "one"),
    "poly-ms": Arm("polynomial", "one", separate=True),
    "gmean": Arm("polynomial", "mean"),
    "calr": Arm("polynomial", "complexity"),
    "ms": Arm("cosine", "one", separate=True),
    "dynamic": Arm("polynomial", "complexity", separate=True),
    "calq": Arm("polynomial", "rank"),
    "calq-cosine": Arm("cosine", "rank"),
    "calq-cosine-ms": Arm("cosine", "rank", separate=True),
    "calq-ms": Arm("polynomial", "rank", separate=True),
    "calq-ms-2": Arm("polynomial", "rank", separate=True, gamma_max=2.0),
    "calq-ms-8": Arm("polynomial", "rank", separate=True, gamma_max=8.0),
    # A group comes up once in five updates: its momentum then reaches back as far as a common one.
    "calq-ms-visits": Arm(
        "polynomial", "rank", separate=True, momentum=MOMENTUM ** len(OPERATIONS)
    ),
    "calq-anneal": Arm("polynomial", "rank", anneal=0.1),
    "calq-depth": Arm("polynomial", "rank", complexity=depth),
    "calq-measured": Arm("polynomial", "measured"),
    "calq-both": Arm("polynomial", "rank", complexity=_size_and_depth),
}
"""Arms by name. `static` is the usual training: one cosine decay, one momentum."""


@functools.cache
def _complexities(measure: Callable[[Architecture], float] = parameters) -> np.ndarray:
    # Of the networks that the table ranks, C=16 and N=5, whatever the size of the supernet: γ is
    # then distributed as in the paper.
    return np.array([measure(architecture) for architecture in SPACE])


def mean_gamma() -> float:
    """Mean of CaLR's γ over uniformly drawn subnets."""
    calr = ARMS["calr"].calr(updates=1)
    return float(np.mean([calr.gamma_of(value) for value in _complexities()]))
