"""Spaces, scores, and slow searches to kill: `python -m tests.search.searching NAME FILE LOG`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nas_dynamic import Architecture, SearchSpace
from nas_dynamic.search import Evolution, Objective, RoBoT, SearchResult, Strategy, search

SPACE = SearchSpace({f"layer{i}": ["conv1", "conv3", "conv5"] for i in range(6)})
# Too large to be listed: strategies see it through draws.
WIDE = SearchSpace({f"layer{i}": [0, 1, 2, 3] for i in range(12)})
ACCURACY = Objective("accuracy", maximize=True)
COST = {"conv1": 1, "conv3": 9, "conv5": 25}


def parameters(architecture: Architecture) -> float:
    return float(sum(COST[str(candidate)] for candidate in architecture.values()))


def accuracy(architecture: Architecture) -> float:
    text = "".join(map(str, architecture.values()))
    return parameters(architecture) ** 0.5 + (sum(map(ord, text)) * 7919 % 13) / 5


def scores(architectures: list[Architecture]) -> list[dict[str, float]]:
    return [{"accuracy": accuracy(architecture)} for architecture in architectures]


def key(architecture: Architecture) -> tuple[object, ...]:
    return tuple(architecture.values())


SEARCHES: dict[str, tuple[Strategy, list[Objective]]] = {
    "evolution": (Evolution(population=12, offspring=6), [ACCURACY, Objective("parameters")]),
    "robot": (RoBoT(iterations=40, pool=300), [ACCURACY]),
}
"""For accurate and small subnets, or for accurate ones."""


def digits(architecture: Architecture) -> float:
    return float(sum(map(ord, "".join(map(str, architecture.values())))) % 7)


def run(
    name: str, records: Path | None, log: Path | None = None, delay: float = 0.0
) -> SearchResult:
    """Sixty evaluations; the log has one line each."""
    strategy, objectives = SEARCHES[name]

    def score(architectures: list[Architecture]) -> Iterator[dict[str, float]]:
        for architecture in architectures:
            time.sleep(delay)
            if log:
                with log.open("a") as file:
                    file.write(" ".join(map(str, architecture.values())) + "\n")
            yield {"accuracy": accuracy(architecture)}

    return search(
        SPACE,
        score,
        objectives,
        budget=60,
        strategy=strategy,
        measures={"parameters": parameters, "digits": digits},
        path=records,
        seed=3,
    )


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), delay=0.05)
