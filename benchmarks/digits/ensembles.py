"""Is an ensemble of small subnets better than the best single one of as many MACs?

    python -m benchmarks.digits.ensembles run     # a minute a seed on a CPU core; what is missing
    python -m benchmarks.digits.ensembles table   # paired differences to the best single subnet

Trains NNI's NasBench201 space, at small size, dynamically on scikit-learn's digits, and scores
random subnets with inherited weights. Within each limit of the total MACs, a quantile of those of
the subnets, the best single one, pair and triple are chosen by the loss on the validation images
(`search_ensembles`, NEAS), and held against each other on the test images, which chose nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot

from benchmarks.digits.strategies import quiet, train
from nas_dynamic import Architecture
from nas_dynamic.adapters.nni import Supernet, dynamic
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.text_table import text_table
from nas_dynamic.complexity import lookup
from nas_dynamic.evaluation import KeptLogits, score_subnets
from nas_dynamic.experiment.data import ImageData, Images, batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.run import sample_architectures
from nas_dynamic.search import EnsemblesResult, search_ensembles

QUANTILES = (0.25, 0.5, 0.75, 1.0)
SIZES = (1, 2, 3)


class Scored:
    """Logits of subnets on some images, kept in a folder."""

    def __init__(self, supernet: Supernet, data: ImageData, images: Images, folder: Path) -> None:
        self.supernet, self.kept = supernet, KeptLogits(folder)
        self.batches = list(batch_loader(images, 256))
        self.calibration = calibration_batches(data.train, 128, 4)
        self.labels = images.labels.numpy()

    def ensembles(self, subnets: Sequence[Architecture], **options: Any) -> EnsemblesResult:
        """Return ensembles of subnets, those that have no logits yet scored first."""
        new = [subnet for subnet in subnets if subnet not in self.kept]
        scores = score_subnets(
            self.supernet,
            Supernet.activate,
            new,
            self.batches,
            calibration=self.calibration,
            logits=self.kept,
        )
        for _ in scores:  # whose logits are kept
            pass
        return search_ensembles(subnets, self.kept.__getitem__, self.labels, **options)


def run(options: argparse.Namespace) -> None:
    """Train and search the seeds that the results lack."""
    quiet()
    data = digits(seed=0)
    done = {row["seed"] for row in read(options.results)}
    for seed in (seed for seed in range(options.seeds) if seed not in done):
        started = time.process_time()
        pl.seed_everything(seed, verbose=False)
        strategy = dynamic(RandomOneShot(), seed=seed, keep_mean_lr=False)
        model = train(
            strategy, NasBench201(8, 1, data.classes), data, epochs=options.epochs, seed=seed
        )
        supernet = Supernet(model)
        subnets = sample_architectures(supernet.space, options.subnets, seed)
        image, _ = data.test[torch.arange(1)]
        macs = lookup(supernet.space, supernet.subnet_macs(image))
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            chosen_on, told_on = (
                Scored(supernet, data, images, Path(folder) / name)
                for name, images in (("validation", data.validation), ("test", data.test))
            )
            for share in QUANTILES:
                limit = float(np.quantile([macs(subnet) for subnet in subnets], share))
                within = {"cost": macs, "at_most": limit}
                found = chosen_on.ensembles(subnets, sizes=SIZES, **within).ensembles
                for size in sorted({len(ensemble.architectures) for ensemble in found}):
                    of_size = [e for e in found if len(e.architectures) == size]
                    best = min(of_size, key=lambda ensemble: ensemble.loss)
                    # Of its members alone there is one ensemble of this size.
                    told = told_on.ensembles(best.architectures, sizes=[size], **within).ensembles
                    row = {"seed": seed, "share": share, "size": size, "limit": limit}
                    row |= {"macs": best.cost, "validation_loss": best.loss, "loss": told[0].loss}
                    row |= {"accuracy": told[0].accuracy, "diversity": told[0].diversity}
                    rows.append({k: round(v, 5) for k, v in row.items()})
        with options.results.open("a") as file:  # a seed is there in full or not at all
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        print(f"seed {seed}: {time.process_time() - started:.0f} s", flush=True)


def read(path: Path) -> list[dict[str, float]]:
    """Return the rows of the results; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(options: argparse.Namespace) -> None:
    """Print what pairs and triples have over the best single subnet, on the test images."""
    rows = {(row["share"], row["size"], row["seed"]): row for row in read(options.results)}
    lines = []
    for share, size in itertools.product(QUANTILES, SIZES):
        seeds = [s for q, n, s in rows if (q, n) == (share, size) and (share, 1, s) in rows]
        if not seeds:
            continue
        line = [f"{share:.0%}", str(size), str(len(seeds))]
        of_size, single = ([rows[share, n, s] for s in seeds] for n in (size, 1))
        line.append(f"{mean_estimate([row['macs'] / row['limit'] for row in of_size]).value:.0%}")
        line.append(f"{mean_estimate([row['diversity'] for row in of_size]).value:.3f}")
        for measure, scale, digit in (
            ("validation_loss", 1, 3),
            ("loss", 1, 3),
            ("accuracy", 100, 2),
        ):
            values = [scale * row[measure] for row in of_size]
            difference = Difference(np.subtract(values, [scale * row[measure] for row in single]))
            text = f"{mean_estimate(values).value:.{digit}f}"
            if size > 1:
                text += f", {difference:+.{digit}f}"
            line.append(text)
        lines.append(line)
    header = ["limit, quantile", "subnets", "seeds", "of the limit", "diversity"]
    header += ["validation loss, less single", "test loss, less single", "accuracy, less single"]
    print(text_table(header, lines))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits.ensembles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--epochs", type=int, default=20, help="of the supernet")
    parser.add_argument("--subnets", type=int, default=200, help="that are scored")
    parser.add_argument("--seeds", type=int, default=8)
    default = Path("benchmarks/results/ensembles.jsonl")
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
