"""Which edge of NAS-Bench-201's cell makes groups of similar gradients?

    python -m benchmarks.digits.grouping              # under a minute on one CPU core

Trains NNI's NasBench201 space on scikit-learn's digits for some epochs, statically, and prints
the rows of `gradient_similarity`. The label "cell/0_3" is the edge from node 0 to node 3.
"""

from __future__ import annotations

import argparse
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import NasBench201
from torch.nn.functional import cross_entropy

from benchmarks.digits.strategies import STRATEGIES, quiet, train
from nas_dynamic import Architecture
from nas_dynamic.adapters.nni import activate, search_space
from nas_dynamic.analysis.gradient_similarity import gradient_function, gradient_similarity
from nas_dynamic.experiment.data import calibration_batches
from nas_dynamic.experiment.data_sets import digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    quiet()
    data = digits(seed=0)
    batches = calibration_batches(data.train, 64, 3)
    for seed in range(options.seeds):
        pl.seed_everything(seed, verbose=False)
        supernet = train(
            STRATEGIES["random (SPOS)"](seed),
            NasBench201(8, 1, data.classes),
            data,
            epochs=options.epochs,
            seed=seed,
        )

        def loss(
            architecture: Architecture, batch: Any, supernet: torch.nn.Module = supernet
        ) -> torch.Tensor:
            activate(supernet, architecture)
            return cross_entropy(supernet(batch[0]), batch[1])

        gradient = gradient_function(supernet, loss)
        print(f"seed {seed}")
        print(*gradient_similarity(search_space(supernet), gradient, batches), sep="\n", flush=True)


if __name__ == "__main__":
    main()
