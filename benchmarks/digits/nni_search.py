"""NNI's search strategies on one trained supernet, with inherited weights.

    python -m benchmarks.digits.nni_search            # some ten minutes on one CPU core

A NasBench201 supernet is trained dynamically on scikit-learn's digits. Each strategy then searches
it through `SupernetEvaluator`, for several seeds, with a budget of candidates. What it finds is
extracted, recalibrated and tested on images that neither training nor search has seen.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import pytorch_lightning as pl
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import TPE, PolicyBasedRL, Random, RandomOneShot, RegularizedEvolution
from nni.nas.strategy.base import Strategy

from benchmarks.digits.strategies import quiet, train
from nas_dynamic.adapters.nni import SupernetEvaluator, dynamic, extract
from nas_dynamic.evaluation import evaluate, recalibrate
from nas_dynamic.experiment.data import batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits

STRATEGIES: dict[str, Callable[[int], Strategy]] = {
    "Random": lambda seed: Random(seed=seed),
    "RegularizedEvolution": lambda seed: RegularizedEvolution(
        population_size=20, sample_size=5, mutation_prob=0.2, seed=seed
    ),
    "TPE": lambda seed: TPE(optimize_mode="maximize", seed=seed),
    "TPE, 2 EI candidates": lambda seed: TPE(
        optimize_mode="maximize", seed=seed, tpe_args={"n_ei_candidates": 2}
    ),
    "PolicyBasedRL": lambda seed: PolicyBasedRL(samples_per_update=10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    quiet()
    data = digits(seed=0)
    pl.seed_everything(0, verbose=False)
    supernet = train(
        dynamic(RandomOneShot(), gamma_by="complexity", keep_mean_lr=False, seed=0),
        NasBench201(8, 1, data.classes),
        data,
        epochs=options.epochs,
        seed=0,
    )
    calibration = calibration_batches(data.train, 128, 4)
    print("| strategy | best, validation | mean of all | best, test | scored | seconds |")
    print("|---|---|---|---|---|---|")
    for name, build in STRATEGIES.items():
        best, mean, test, scored, seconds = [], [], [], [], []
        for seed in range(options.seeds):
            pl.seed_everything(seed, verbose=False)  # the policy has no seed of its own
            evaluator = SupernetEvaluator(
                batch_loader(data.validation, 256), calibration=calibration
            )
            started = time.perf_counter()
            found = search(supernet, evaluator, build(seed), options.candidates)
            seconds.append(time.perf_counter() - started)
            values = [score.accuracy for score in evaluator.scores]
            best.append(max(values))
            mean.append(statistics.mean(values))
            scored.append(len(values))
            subnet = extract(supernet, found)
            recalibrate(subnet, calibration)
            test.append(evaluate(subnet, batch_loader(data.test, 256))[0])
        print(
            f"| {name} | {_range(best)} | {_range(mean)} | {_range(test)} "
            f"| {statistics.mean(scored):.0f} | {statistics.mean(seconds):.0f} |",
            flush=True,
        )


def search(
    supernet: NasBench201, evaluator: SupernetEvaluator, strategy: Strategy, candidates: int
) -> dict[str, str]:
    """Return the best candidate that a strategy finds."""
    experiment = NasExperiment(supernet, evaluator, strategy)
    quiet()  # NNI sets up its loggers anew
    experiment.config.max_trial_number = candidates
    with tempfile.TemporaryDirectory() as folder:
        experiment.config.experiment_working_directory = folder
        experiment.run()
        (found,) = experiment.export_top_models(formatter="dict")
        experiment.stop()
    return found


def _range(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    main()
