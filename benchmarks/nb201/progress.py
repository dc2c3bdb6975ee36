"""How fast each subnet still learns, told from the training losses alone, as its complexity.

CaLR presumes that large subnets converge late. Here nothing is presumed: the loss of a sampled
subnet is taken as linear in its operations, and in their products with time, by recursive ridge
regression over the losses seen so far. How steeply the fitted loss of a subnet falls is its
complexity, as a rank among all subnets; so γ by rank anneals first what has converged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.nb201.supernet import SPACE
from nas_dynamic.space import Architecture, key

__all__ = ["Progress"]

RIDGE = 10.0
"""In observations; losses are of the order of one."""


class Progress:
    """The rank of how fast the loss of a subnet falls, plus one, in (1, 2).

    1.5, the middle, for all subnets in the first twentieth of the budget.

    Args:
        updates: budget.
    """

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self._number = {key(architecture): n for n, architecture in enumerate(SPACE)}
        self._features = np.array([[1, *SPACE.one_hot(a)] for a in SPACE])
        size = 2 * self._features.shape[1]
        self._gram, self._moment, self._seen = np.zeros((size, size)), np.zeros(size), 0
        self._ranks = np.full(len(self._features), 0.5)

    def __call__(self, architecture: Architecture) -> float:
        """Return one plus the rank."""
        return 1 + float(self._ranks[self._number[key(architecture)]])

    @property
    def population(self) -> np.ndarray:
        """What `__call__` returns over the space, whatever was seen: ranks are ranks."""
        return 1 + _as_ranks(np.arange(len(self._ranks)))

    @property
    def slopes(self) -> np.ndarray:
        """By how much the fitted loss of each subnet of the space falls over the budget, (n,)."""
        size = len(self._moment)
        fitted = np.linalg.solve(self._gram + RIDGE * np.eye(size), self._moment)
        return -self._features @ fitted[size // 2 :]

    def observe(self, architecture: Architecture, loss: float) -> None:
        """Take the training loss of a subnet; the ranks are fitted eighty times in a training."""
        features = self._features[self._number[key(architecture)]]
        row = np.concatenate([features, features * (self._seen / self._updates)])
        self._gram += np.outer(row, row)
        self._moment += row * loss
        self._seen += 1
        period = max(self._updates // 80, 1)
        if self._seen % period == 0 and self._seen >= self._updates / 20:
            self._ranks = _as_ranks(self.slopes)

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen."""
        return {
            "gram": self._gram.tolist(),
            "moment": self._moment.tolist(),
            "ranks": self._ranks.tolist(),
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was seen."""
        self._gram, self._moment, self._ranks = (
            np.array(state[name]) for name in ("gram", "moment", "ranks")
        )
        self._seen = state["seen"]


def _as_ranks(values: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = (np.arange(len(values)) + 0.5) / len(values)
    return ranks
