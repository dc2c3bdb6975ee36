"""From a space to a network: train a supernet on digits, search it, train what was found alone.

python examples/search_digits.py

Trains NNI's NasBench201 space dynamically on scikit-learn's digits, searches the supernet by
evolution over accuracy with inherited weights and the number of parameters, trains the ten most
accurate subnets alone, and takes the one that is best on the validation images. Its place among
random subnets trained alone is told on the test images, which decided nothing. Two to three
minutes for the first seed on one CPU core, less for the next ones. What was measured is kept in
OUT: start it again after a stop, or with other seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from nas_dynamic.adapters.nni.supernet import train_supernet
from nas_dynamic.architecture import Architecture, SearchSpace
from nas_dynamic.compare import stand_alone
from nas_dynamic.config import Config
from nas_dynamic.console import Display
from nas_dynamic.data import ImageData
from nas_dynamic.demo import Demo
from nas_dynamic.experiment import load_data, sample_architectures, score
from nas_dynamic.problem import Objective
from nas_dynamic.score_file import digest
from nas_dynamic.search import search
from nas_dynamic.search_result import Evaluation, SearchResult


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    demo = Demo(args.seed, 100, args.alone_epochs, args.subnets, 4, "cpu", "32")
    config = demo.config(dynamic=True)
    data = load_data(config.data)
    places = []
    with Display() as display:
        for seed in args.seed:
            found, space = search_supernet(config, data, seed, args, display)
            finalists = most_accurate(found, args.retrain)
            measure = partial(stand_alone, config, data, epochs=args.alone_epochs)
            measure = partial(measure, folder=args.out, display=display)
            validated = measure([e.architecture for e in finalists], on="validation")
            best = finalists[validated.index(max(validated))]
            sample = sample_architectures(space, args.subnets, seed=0)
            *alone, reached = measure([*sample, best.architecture])
            better = sum(accuracy > reached for accuracy in alone)
            places.append(better / len(alone))
            print(
                f"seed {seed}: found {' '.join(map(str, best.architecture.values()))}, "
                f"{best.values['accuracy']:.1%} with inherited weights; alone {reached:.1%}, "
                f"{better} of {len(alone)} random subnets are better "
                f"(they reach {min(alone):.1%} to {max(alone):.1%})",
                flush=True,
            )
    good = sum(place < 0.1 for place in places)
    print(f"In the top decile: {good} of {len(places)} seeds")


def search_supernet(
    config: Config, data: ImageData, seed: int, args: argparse.Namespace, display: Display
) -> tuple[SearchResult, SearchSpace]:
    folder = args.out / f"seed-{seed}"
    trained = train_supernet(
        config, data, seed, progress=display.work(f"train seed {seed}"), folder=folder
    )

    def accuracies(architectures: list[Architecture]) -> Iterator[dict[str, float]]:
        for scored in score(trained, config, data, architectures):
            yield {"accuracy": scored.accuracy, "loss": scored.loss}

    found = search(
        trained.space,
        accuracies,
        [Objective("accuracy", maximize=True), Objective("parameters")],
        budget=args.budget,
        measures={"parameters": trained.parameters},
        path=folder / f"search-{digest(trained.model)[:12]}.jsonl",
        progress=display.work(f"search seed {seed}"),
        seed=seed,
    )
    return found, trained.space


def most_accurate(found: SearchResult, count: int) -> list[Evaluation]:
    """The smaller loss decides between equals."""
    order = sorted(found.evaluations, key=lambda e: (-e.values["accuracy"], e.values["loss"]))
    return order[:count]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/search_digits"))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=int, default=300, help="subnets that are scored")
    parser.add_argument("--retrain", type=int, default=10, help="finalists that are trained alone")
    parser.add_argument("--subnets", type=int, default=50, help="random ones to compare with")
    parser.add_argument("--alone-epochs", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
