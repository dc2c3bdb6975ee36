"""TangleNAS: a mixture of all subnets of an elastic vision transformer, searched by gradients.

    python examples/tangle/train.py run       # what the results lack
    python examples/tangle/train.py table     # accuracy of what is found, and paired differences
    python examples/tangle/train.py memory    # peaks: the mixture, and the largest subnet

In every forward pass of the mixture each weight is the mean of the subnets' slices, padded by
zeros. A batch of the training images updates the weights, one of the validation images the
probabilities of the candidates. What an arm finds is trained alone, from new weights.

- `spos`: uniformly sampled subnets, and evolution over them by validation loss. `spos-calr`: with
  CaLR.
- `tangle`: softmax of the logits; the most probable subnet. `tangle-gumbel`: annealed Gumbel
  samples. `tangle-calr`: softmax, and CaLR by the expected number of parameters.

Source: Sukthanker et al., "Weight-Entanglement Meets Gradient-Based Neural Architecture Search",
AutoML 2024, arXiv 2312.10440.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixture import Mixture
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from nas_dynamic import CaLR, DynamicTraining, UniformSampler
from nas_dynamic.adapters.timm import ElasticVisionTransformer, elastic_vit
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.complexity import population
from nas_dynamic.evaluation import evaluate
from nas_dynamic.experiment.data import ImageData, Images, batch_loader
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.standalone import train_standalone
from nas_dynamic.search import search_supernet
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

ARMS = {
    "spos": None,
    "spos-calr": "spos",
    "tangle": "spos",
    "tangle-gumbel": "spos",
    "tangle-calr": "tangle",
}
"""Arms, and what the table compares each with."""

BATCH = 64


def make_supernet() -> ElasticVisionTransformer:
    model = VisionTransformer(
        img_size=8,
        patch_size=2,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=10,
        class_token=False,
        global_pool="avg",
    )
    return elastic_vit(
        model, depth=[1, 2, 3], embed_dim=[16, 32, 48], heads=[1, 2, 3], mlp_ratio=[1, 2, 4]
    )


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)


def endless(images: Images, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield shuffled batches."""
    loader: Any = batch_loader(images, BATCH, shuffle=True, seed=seed)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def decay(supernet: ElasticVisionTransformer, complexity: Any, steps: int, bent: bool) -> CaLR:
    """Return a linear decay of the lr, or CaLR's by rank among the subnets."""
    sizes = population(supernet.space, supernet.subnet_parameters(), samples=500)
    return CaLR(complexity, total_steps=steps, population=sizes, gamma_max=4.0 if bent else 1.0)


def find(arm: str, data: ImageData, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a supernet and return the architecture that an arm finds."""
    torch.manual_seed(seed)
    supernet = make_supernet()
    optimizer, steps = adamw(supernet), options.updates
    training, validation = endless(data.train, seed), endless(data.validation, seed)
    bent = arm.endswith("calr")
    if arm.startswith("spos"):
        calr = decay(supernet, supernet.subnet_parameters(), steps, bent)
        DynamicTraining(optimizer, lambda: supernet.sampled, calr=calr)
        sampler = UniformSampler(supernet.space, seed)
        for images, labels in itertools.islice(training, steps):
            supernet.sampled = sampler.sample()
            optimizer.zero_grad()
            F.cross_entropy(supernet(images), labels).backward()
            optimizer.step()
        batches = list(batch_loader(data.validation, 256))
        found = search_supernet(
            supernet, batches, batch_norm="running", budget=options.budget, seed=seed
        )
        return dict(found.best.architecture)
    mixture = Mixture(supernet)
    told: dict[str, Any] = {}
    calr = decay(supernet, mixture.parameters_of, steps, bent)
    DynamicTraining(optimizer, lambda: told, calr=calr)  # and no momenta apart: all are one
    logits = torch.optim.Adam(mixture.logits.parameters(), lr=options.lr_logits, betas=(0.5, 0.999))
    for step in range(steps):
        temperature = 5 - 4.9 * step / steps if arm == "tangle-gumbel" else None
        if step >= steps // 2:  # candidates of weights that know nothing say nothing
            images, labels = next(validation)
            loss = F.cross_entropy(mixture(images, mixture.probabilities(temperature)), labels)
            own = [*mixture.logits.values()]
            for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                parameter.grad = gradient
            logits.step()
        with torch.no_grad():
            probabilities = mixture.probabilities(temperature)
        told = mixture.told(probabilities)
        images, labels = next(training)
        optimizer.zero_grad()
        F.cross_entropy(mixture(images, probabilities), labels).backward()
        optimizer.step()
    return mixture.most_probable()


def alone(found: dict[str, Any], data: ImageData, epochs: int, seed: int) -> float:
    """Return the test accuracy of a subnet that is trained from new weights."""
    torch.manual_seed(seed)
    network = make_supernet().extract(found)
    train_standalone(
        network, data.train, adamw(network), epochs=epochs, batch_size=BATCH, seed=seed
    )
    return evaluate(network, batch_loader(data.test, 256))[0]


def run(options: argparse.Namespace) -> None:
    """Find and train what the results lack: every arm of a seed before the next seed."""
    data = digits(seed=0)

    def row(arm: str, seed: int) -> dict[str, Any]:
        found = find(arm, data, options, seed)
        seeds = range(options.inits * seed, options.inits * (seed + 1))
        accuracies = [alone(found, data, options.alone, s) for s in seeds]
        return {
            "accuracy": round(float(np.mean(accuracies)), 5),
            "parameters": make_supernet().subnet_parameters()(found),
            "found": found,
        }

    jobs = ((arm, seed) for seed in range(options.seeds) for arm in options.arms)
    complete(options.results, jobs, row)


def table(options: argparse.Namespace) -> None:
    """Print accuracies in percent, with their differences, and the sizes that were found."""
    rows = read_rows(options.results)
    for arm, other in ARMS.items():
        seeds = common_seeds(rows, [arm, other or arm])
        values = np.array([100 * rows[arm, s]["accuracy"] for s in seeds])
        sizes = ", ".join(f"{rows[arm, s]['parameters']:,}" for s in seeds)
        line = f"{arm}: {len(seeds)} seeds, {mean_estimate(values).value:.2f}%"
        if other is not None:
            base = np.array([100 * rows[other, s]["accuracy"] for s in seeds])
            line += f", {Difference(values - base):+.2f} less {other}"
        print(f"{line}; parameters {sizes}")


def peak(model: nn.Module, logits: Callable[[torch.Tensor], torch.Tensor]) -> int:
    """Return the most bytes that torch allocates in two updates of a model's weights."""
    images, labels = torch.randn(BATCH, 3, 8, 8), torch.arange(BATCH) % 10
    optimizer = adamw(model)
    with torch.profiler.profile(profile_memory=True) as profiled:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(logits(images), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(str(path := Path(folder, "trace.json")))
        events = json.loads(path.read_text())["traceEvents"]
    changes = (event["args"]["Bytes"] for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate(changes))


def memory(options: argparse.Namespace) -> None:
    """Print the peaks of a training of the mixture and of the largest subnet, on a CPU."""
    supernet = make_supernet()
    largest, mixture = supernet.extract(supernet.base), Mixture(supernet)
    held = sum(p.nbytes for p in largest.parameters())
    of_largest = held + peak(largest, largest)
    held += sum(cells.of_entry.nbytes for cells in mixture.cells.values())
    of_mixture = held + peak(mixture, lambda images: mixture(images, mixture.probabilities()))
    print(f"largest subnet {of_largest / 2**20:.2f} MiB, mixture {of_mixture / 2**20:.2f} MiB")
    print(f"ratio {of_mixture / of_largest:.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table", "memory"))
    parser.add_argument("--updates", type=int, default=400, help="of the weights of a supernet")
    parser.add_argument("--lr-logits", type=float, default=0.005)
    parser.add_argument("--budget", type=int, default=150, help="subnets that evolution scores")
    parser.add_argument("--alone", type=int, default=30, help="epochs of a subnet by itself")
    parser.add_argument("--inits", type=int, default=2, help="trainings of a subnet by itself")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="to run")
    default = Path(__file__).parent / "results.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    {"run": run, "table": table, "memory": memory}[options.command](options)


if __name__ == "__main__":
    main()
