"""A slow search that can be killed: `python -m tests.search.searching RECORDS LOG`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nas_dynamic import Architecture, SearchSpace
from nas_dynamic.search.evolution import Evolution
from nas_dynamic.search.problem import Objective
from nas_dynamic.search.result import SearchResult
from nas_dynamic.search.run import search

SPACE = SearchSpace({f"layer{i}": ["conv1", "conv3", "conv5"] for i in range(6)})
COST = {"conv1": 1, "conv3": 9, "conv5": 25}


def parameters(architecture: Architecture) -> float:
    return float(sum(COST[str(candidate)] for candidate in architecture.values()))


def accuracy(architecture: Architecture) -> float:
    text = "".join(map(str, architecture.values()))
    return parameters(architecture) ** 0.5 + (sum(map(ord, text)) * 7919 % 13) / 5


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
        [Objective("accuracy", maximize=True), Objective("parameters")],
        budget=60,
        strategy=Evolution(population=12, offspring=6),
        measures={"parameters": parameters},
        path=records,
        seed=3,
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), delay=0.05)
