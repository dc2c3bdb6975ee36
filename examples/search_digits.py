"""From a space to a network: train a supernet on digits, search it, train what was found alone.

python examples/search_digits.py

Trains NNI's NasBench201 space dynamically on scikit-learn's digits, searches the supernet by
evolution over accuracy with inherited weights and the number of parameters, trains the ten most
accurate subnets alone, and takes the one with the least loss on the validation images. Its place
among random subnets trained alone is told on the test images, which decided nothing. Subnets are
trained alone three times, for one training ranks them little better than the supernet does: told
is how two such rankings agree (Kendall τ), and how the supernet's, by the loss, does. Minutes for
the first seed on one CPU core, less for the next ones. What was measured is kept in OUT: start it
again after a stop, or with other seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nas_dynamic.analysis.ranking import comparable_loss, kendall_tau, rank_by_loss
from nas_dynamic.evaluation import digest
from nas_dynamic.experiment.config import Config
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.data import ImageData
from nas_dynamic.experiment.demo import demo_config
from nas_dynamic.experiment.engine import LocalEngine
from nas_dynamic.experiment.nni.supernet import TrainedSupernet, train_supernet
from nas_dynamic.experiment.run import load_data, sample_architectures
from nas_dynamic.experiment.scores import SubnetScorer
from nas_dynamic.experiment.standalone import standalone_scores
from nas_dynamic.search import Evaluation, Objective, SearchResult, search
from nas_dynamic.search.supernet import scored_in_order
from nas_dynamic.space import Architecture


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    # The paper's γ, with which the figures of docs/search.md were made.
    config = demo_config(epochs=args.epochs)
    dynamic = dataclasses.replace(config.dynamic, gamma_by="complexity")
    config = config.model_copy(update={"dynamic": dynamic})
    data = load_data(config.data)
    places = []
    with Display() as display:
        engine = LocalEngine(display.work)

        def alone(
            subnets: Sequence[Architecture],
            measure: Literal["accuracy", "loss"] = "accuracy",
            on: Literal["test", "validation"] = "test",
        ) -> np.ndarray:
            """[training, subnet]."""
            options = (config, data, subnets, args.standalone_epochs, args.out, engine)
            scores = [
                standalone_scores(*options, on=on, seed=seed) for seed in range(args.trainings)
            ]
            return np.array([[getattr(score, measure) for score in row] for row in scores])

        for seed in args.seed:
            trained, found = search_supernet(config, data, seed, args, display)
            sample = sample_architectures(trained.supernet.space, args.subnets, seed=0)
            scores = SubnetScorer(trained.supernet, config, data)(sample)
            ranks = rank_by_loss(score.loss for score in scores)
            accuracies = alone(sample)
            print_agreement(seed, ranks, accuracies)
            distinct = distinct_networks(found)
            finalists = sorted(distinct, key=lambda e: -e.values["accuracy"])[: args.retrain]
            print(f"seed {seed}: {len(distinct)} distinct networks of {args.budget} scored")
            # With so few images the loss tells subnets apart better than the accuracy does.
            losses = alone([e.architecture for e in finalists], "loss", "validation").mean(0)
            best = finalists[int(np.argmin([comparable_loss(loss) for loss in losses]))]
            reached, others = alone([best.architecture]).mean(), accuracies.mean(0)
            better = int((others > reached).sum())
            places.append(better / len(others))
            print(
                f"seed {seed}: found {' '.join(map(str, best.architecture.values()))}, "
                f"{best.values['accuracy']:.1%} with inherited weights; alone {reached:.1%}, "
                f"{better} of {len(others)} random subnets are better "
                f"(they reach {others.min():.1%} to {others.max():.1%})",
                flush=True,
            )
    good = sum(place < 0.1 for place in places)
    print(f"In the top decile: {good} of {len(places)} seeds")


def print_agreement(seed: int, ranks: np.ndarray, alone: np.ndarray) -> None:
    """Print how the supernet's ranking agrees with a training of every subnet, and two of those."""
    of_supernet = np.mean([kendall_tau(ranks, training) for training in alone])
    text = f"seed {seed}: Kendall τ by the loss of the supernet to stand-alone accuracy "
    text += f"{of_supernet:.2f}"
    if len(alone) > 1:
        pairs = [kendall_tau(a, b) for a, b in itertools.combinations(alone, 2)]
        text += f"; between two stand-alone trainings {np.mean(pairs):.2f}"
    print(text, flush=True)


def search_supernet(
    config: Config, data: ImageData, seed: int, args: argparse.Namespace, display: Display
) -> tuple[TrainedSupernet, SearchResult]:
    folder = args.out / f"seed-{seed}"
    trained = train_supernet(
        config, data, seed, progress=display.work(f"train seed {seed}"), folder=folder
    )

    found = search(
        trained.supernet.space,
        scored_in_order(SubnetScorer(trained.supernet, config, data)),
        [Objective("accuracy", maximize=True), Objective("parameters")],
        budget=args.budget,
        measures={"parameters": trained.supernet.subnet_parameters()},
        path=folder / f"search-{digest(trained.supernet.model)[:12]}.jsonl",
        progress=display.work(f"search seed {seed}"),
        seed=seed,
    )
    return trained, found


def distinct_networks(found: SearchResult) -> list[Evaluation]:
    """Subnets that differ in operations without effect only score alike: of these the smallest.

    Those of the least loss come first.
    """
    distinct: dict[tuple[float, float], Evaluation] = {}
    for e in sorted(found.evaluations, key=lambda e: e.values["parameters"]):
        loss = comparable_loss(e.values["loss"])
        distinct.setdefault((round(loss, 6), e.values["accuracy"]), e)
    return [distinct[key] for key in sorted(distinct)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/search_digits"))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=300, help="of the supernet")
    parser.add_argument("--budget", type=int, default=300, help="subnets that are scored")
    parser.add_argument("--retrain", type=int, default=10, help="finalists that are trained alone")
    parser.add_argument("--subnets", type=int, default=50, help="random ones to compare with")
    parser.add_argument("--standalone-epochs", type=int, default=10)
    parser.add_argument("--trainings", type=int, default=3, help="of each subnet alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
