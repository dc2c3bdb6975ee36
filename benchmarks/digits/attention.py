"""Is a front of mixed attention better than those of softmax and of linear attention alone?

    python -m benchmarks.digits.attention run     # what is missing, a minute a supernet on a core
    python -m benchmarks.digits.attention table   # paired differences of the fronts

Trains an elastic vision transformer of timm on scikit-learn's digits, with 16 tokens and heads of
width 8, so that linear attention costs a half of softmax's, which is a twentieth of a layer: with
softmax in all layers, with linear attention, and with either in each layer. NSGA-II searches each
supernet for accuracy on the validation images and MACs, with as many evaluations; what its front
dominates is measured on the test images.

Source: Wang et al., "Neural Architecture Search on Efficient Transformers and Beyond", 2022, arXiv
2207.13955.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from nas_dynamic import CaLR, DynamicTraining, UniformSampler
from nas_dynamic.adapters.timm import ElasticVisionTransformer, elastic_vit
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.complexity import population
from nas_dynamic.evaluation import evaluate
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.search import Evolution, Objective, SearchResult, search
from nas_dynamic.space import Architecture, SearchSpace
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

ARMS = {"softmax": ["softmax"], "linear": ["linear"], "mixed": ["softmax", "linear"]}
OBJECTIVES = (Objective("accuracy", maximize=True), Objective("macs"))
DEPTH, LR = 3, 2e-3
WORST_ACCURACY = 0.85
MEASURES = ("hypervolume", "accuracy", "macs")
"""Share of the box of accuracy and MACs that the front dominates; of its most accurate subnet the
accuracy and the MACs, in millions."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits.attention", description=__doc__
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--budget", type=int, default=60, help="evaluations of a search")
    parser.add_argument("--seeds", type=int, default=3)
    default = Path("benchmarks/results/attention.jsonl")
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


def run(options: argparse.Namespace) -> None:
    """Train and search what the results lack: every arm of a seed before the next seed."""
    torch.set_num_threads(1)
    data = digits()

    def row(arm: str, seed: int) -> dict[str, float]:
        supernet = supernet_of(seed, data.classes)
        labels = [label for label in supernet.space.labels if label.startswith("attention")]
        space = supernet.space.restrict(dict.fromkeys(labels, ARMS[arm]))
        train(supernet, space, data, options.epochs, seed)
        found = front(supernet, space, data, options.budget, seed)
        return {name: round(value, 4) for name, value in found.items()}

    jobs = ((arm, seed) for seed in range(options.seeds) for arm in ARMS)
    complete(options.results, jobs, row)


def supernet_of(seed: int, classes: int) -> ElasticVisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=8,
        patch_size=2,
        embed_dim=48,
        depth=DEPTH,
        num_heads=6,
        num_classes=classes,
        class_token=False,
        global_pool="avg",
    )
    return elastic_vit(
        model,
        depth=[*range(1, DEPTH + 1)],
        embed_dim=[32, 48],
        mlp_ratio=[1, 2, 4],
        attention=["softmax", "linear"],
    )


def train(
    supernet: ElasticVisionTransformer, space: SearchSpace, data: ImageData, epochs: int, seed: int
) -> None:
    """Train the subnets of a space, with a linear decay; batches are those of the seed."""
    loader = batch_loader(data.train, 64, shuffle=True, seed=seed)
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=LR, weight_decay=0.05)
    parameters, updates = supernet.subnet_parameters(), epochs * len(loader)
    calr = CaLR(
        parameters,
        total_steps=updates,
        population=population(space, parameters),
        gamma_max=1.0,
        warmup_steps=updates // 10,
    )
    DynamicTraining(optimizer, lambda: supernet.architecture, calr=calr, space=supernet.space)
    sampler = UniformSampler(space, seed)
    supernet.train()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            supernet.activate(sampler.sample())
            optimizer.zero_grad()
            F.cross_entropy(supernet(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(supernet.parameters(), 1.0)
            optimizer.step()


def front(
    supernet: ElasticVisionTransformer,
    space: SearchSpace,
    data: ImageData,
    budget: int,
    seed: int,
) -> dict[str, float]:
    """Return what the front that a search finds is worth on the test images."""
    validation, test = (list(batch_loader(i, 512)) for i in (data.validation, data.test))
    macs = supernet.subnet_macs()

    def accuracy(architecture: Architecture, batches: list) -> float:
        supernet.activate(architecture)
        return evaluate(supernet, batches)[0]

    def score(architectures: list[Architecture]) -> Iterator[dict[str, float]]:
        for architecture in architectures:
            yield {"accuracy": accuracy(architecture, validation)}

    found = search(
        space,
        score,
        OBJECTIVES,
        budget=budget,
        strategy=Evolution(population=20),
        measures={"macs": macs},
        seed=seed,
    )
    tested = [
        replace(e, values=e.values | {"accuracy": accuracy(e.architecture, test)})
        for e in found.pareto
    ]
    whole = supernet.space
    worst = (WORST_ACCURACY, macs(whole.largest(macs)))
    share = SearchResult(OBJECTIVES, tested).hypervolume(worst, (1.0, macs(whole.smallest(macs))))
    best = tested[int(np.argmax([e.values["accuracy"] for e in found.pareto]))].values
    return {
        "hypervolume": float(share[-1]),
        "accuracy": best["accuracy"],
        "macs": best["macs"] / 1e6,
        "front": len(tested),
    }


def table(options: argparse.Namespace) -> None:
    """Print means of the arms, and differences of the mixed ones to both others."""
    rows = read_rows(options.results)
    for arm in ARMS:
        seeds = common_seeds(rows, [arm, "mixed"])
        for measure in MEASURES if seeds else ():
            values = [rows[arm, seed][measure] for seed in seeds]
            line = f"{arm:8} {measure:12} {mean_estimate(values).value:.3f}"
            if arm != "mixed":
                mixed = [rows["mixed", seed][measure] for seed in seeds]
                line += f"  mixed less it {Difference(np.subtract(mixed, values)):+.3f}"
            print(f"{line}  ({len(seeds)} seeds)")


if __name__ == "__main__":
    main()
