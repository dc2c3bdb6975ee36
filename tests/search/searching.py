"""Spaces, scores, and a slow search to kill: `python -m tests.search.searching RECORDS LOG`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nas_dynamic import Architecture, SearchSpace
from nas_dynamic.search import Evolution, Objective, SearchResult, search

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


def run(records: Path | None, log: Path | None = None, delay: float = 0.0) -> SearchResult:
    """Sixty evaluations of a search for accurate and small subnets; the log has one line each."""

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
        [ACCURACY, Objective("parameters")],
        budget=60,
        strategy=Evolution(population=12, offspring=6),
        measures={"parameters": parameters},
        path=records,
        seed=3,
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), delay=0.05)
