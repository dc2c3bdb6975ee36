"""Does in-place distillation help the smallest subnet? The sandwich rule with and without it.

    python -m benchmarks.digits.distillation          # some minutes on one CPU core

Trains a small elastic vision transformer (NNI's AutoFormer space) on scikit-learn's digits, with
equal updates, seeds and subnets in both arms, statically, and compares test accuracies of the
smallest and of the largest subnet, paired by seed.
"""

from __future__ import annotations

import argparse
import statistics

import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import AutoFormer

from benchmarks.digits.strategies import accuracies, quiet, train
from nas_dynamic.adapters.nni import SandwichOneShot, search_space, subnet_parameters
from nas_dynamic.experiment.data_sets import digits


def space(classes: int) -> AutoFormer:
    return AutoFormer(
        search_embed_dim=(16, 32, 64),
        search_mlp_ratio=(1.0, 2.0),
        search_num_heads=(1, 2),
        search_depth=(1, 2, 3),
        img_size=8,
        patch_size=2,
        num_labels=classes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    quiet()
    data = digits(seed=0)
    gains: list[tuple[float, float]] = []
    print("| seed | smallest: labels | distilled | largest: labels | distilled |")
    print("|---|---|---|---|---|")
    for seed in range(options.seeds):
        found = []
        for distill in (False, True):
            pl.seed_everything(seed, verbose=False)
            supernet = train(
                SandwichOneShot(randoms=1, distill=distill, seed=seed),
                space(data.classes),
                data,
                epochs=options.epochs,
                seed=seed,
                optimizer=torch.optim.AdamW,
                lr=options.lr,
                cosine=True,
            )
            parameters, choices = subnet_parameters(supernet), search_space(supernet)
            ends = [choices.smallest(parameters), choices.largest(parameters)]
            found.append(accuracies(supernet, ends, data))
        (small, large), (small_distilled, large_distilled) = found
        gains.append((small_distilled - small, large_distilled - large))
        print(
            f"| {seed} | {small:.3f} | {small_distilled:.3f} | {large:.3f} | "
            f"{large_distilled:.3f} |",
            flush=True,
        )
    for end, values in zip(("smallest", "largest"), zip(*gains, strict=True), strict=True):
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{end}: {statistics.mean(values):+.4f} ± {spread:.4f} (standard error of the mean)")


if __name__ == "__main__":
    main()
