"""Train NAS-Bench-201 supernets with the hyperparameters of the CVPR 2025 paper.

On one device, a few minutes a run on a CPU:
    python examples/nasbench201/train.py --method dynamic --sampler fair
The paper's size, on several GPUs:
    torchrun --nproc_per_node=4 examples/nasbench201/train.py --preset paper --data CIFAR10 \
        --root ~/data --download --method dynamic --sampler spos

With --as-published FairNAS and few-shot are trained as the authors' own scripts do, which differ
from the default in what the README lists. A run that was stopped goes on where it was when it is
started again with the same options.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from supernet import SPACE, Supernet
from torch import nn

from nas_dynamic import (
    Architecture,
    CaLR,
    DynamicTraining,
    FairSampler,
    MomentumSeparation,
    SearchSpace,
    UniformSampler,
    partition,
)
from nas_dynamic.analysis.ranking import kendall_tau
from nas_dynamic.complexity import bounds, lookup
from nas_dynamic.evaluation import score_subnets
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.data_sets import digits, image_folder, torchvision_set


@dataclass(frozen=True)
class Preset:
    """Sizes; the rest of the recipe is the same for all."""

    width: int
    cells: int
    epochs: int
    subnets: int  # scored at the end


PRESETS = {"paper": Preset(16, 5, 250, 1000), "small": Preset(8, 1, 30, 100)}
PUBLISHED_EPOCHS = {"spos": 250, "fair": 200, "fewshot": 300}
BATCH, LR, MOMENTUM, WEIGHT_DECAY, CLIP = 64, 0.025, 0.9, 5e-4, 5.0

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def main() -> None:
    options = parse()
    device = set_up_device(options.device)
    preset, data = PRESETS[options.preset], load_data(options)
    published = "-published" if options.as_published else ""
    name = f"{options.method}-{options.sampler}-{options.preset}{published}-s{options.seed}"
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(options.seed)  # the same weights on every rank
    few_shot, trained = options.sampler == "fewshot", []
    supernet = Supernet(preset.width, preset.cells, data.classes).to(device)
    if not (few_shot and options.as_published):
        train(options, SPACE, supernet, data, folder / "supernet.pt")
        trained = [(SPACE, supernet)]
    if few_shot:
        trained = []
        for number, space in enumerate(partition(SPACE, [options.split])):
            if options.as_published:  # from weights of its own
                part = Supernet(preset.width, preset.cells, data.classes).to(device)
            else:
                part = copy.deepcopy(supernet)
            train(options, space, part, data, folder / f"supernet{number}.pt")
            trained.append((space, part))
    if RANK == 0:
        report(options, trained, data, folder)
    if WORLD > 1:
        dist.destroy_process_group()


def train(
    options: argparse.Namespace,
    space: SearchSpace,
    supernet: Supernet,
    data: ImageData,
    checkpoint: Path,
) -> None:
    """Train a supernet for the subnets of a space, or go on with it."""
    # One update sums the losses of its subnets, which carry the factor of CaLR; lr and weight
    # decay stay as they are, in the static arm as well.
    summed = options.as_published and options.sampler == "fair"
    epochs = options.epochs or PRESETS[options.preset].epochs
    batches = batch_loader(data.train, BATCH, shuffle=True, seed=options.seed)
    steps = epochs * len(batches)
    anneal, separate = options.method in ("calr", "dynamic"), options.method in ("ms", "dynamic")

    parameters = list(supernet.parameters())
    device = parameters[0].device
    optimizer = torch.optim.SGD(
        parameters, LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    # The static baselines have a schedule of their own, FairNAS as well as the others.
    scheduler = None
    if not (anneal or summed):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if options.sampler == "fair":
        # All subnets of a step are of one momentum group.
        sampler = FairSampler(space, options.seed, options.group_by if separate else None)
    else:
        sampler = UniformSampler(space, options.seed)
    complexity = lookup(SPACE, supernet.subnet_parameters())
    reference = SPACE if options.as_published else space
    calr = CaLR(
        complexity,
        total_steps=steps,
        bounds=bounds(reference, complexity),
        anneal="loss" if summed else "lr",
    )
    subnets: list[Architecture] = []
    dynamic = DynamicTraining(
        optimizer,
        architecture=lambda: subnets,
        calr=calr if anneal else None,
        momentum=MomentumSeparation(options.group_by) if separate else None,
        idle="coast",  # also in the static arms, so that method is all that differs
        space=space,
    )

    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        done = saved["epoch"]
        supernet.load_state_dict(saved["supernet"])
        if done < epochs:
            optimizer.load_state_dict(saved["optimizer"])
            sampler.load_state_dict(saved["sampler"])
            if scheduler is not None:
                scheduler.load_state_dict(saved["scheduler"])
    supernet.train()
    for epoch in range(done, epochs):
        batches.sampler.set_epoch(epoch)
        for images, labels in batches:
            # Every rank trains the same subnets, on its share of the batch.
            images, labels = images[RANK::WORLD].to(device), labels[RANK::WORLD].to(device)
            sampled = sampler.sample()
            subnets[:] = [sampled] if isinstance(sampled, Mapping) else sampled
            optimizer.zero_grad()
            # One graph at a time: K subnets need the memory of one.
            for subnet, weight in zip(subnets, dynamic.loss_weights(subnets), strict=True):
                supernet.activate(subnet)
                loss = nn.functional.cross_entropy(supernet(images), labels)
                (weight / (1 if summed else len(subnets)) * loss).backward()
            average_gradients(parameters)
            if not summed:
                nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        if RANK == 0:
            print(
                f"{checkpoint.stem} epoch {epoch + 1}/{epochs} loss {loss.item():.3f}", flush=True
            )
            save(
                checkpoint,
                epoch=epoch + 1,
                supernet=supernet.state_dict(),
                optimizer=optimizer.state_dict(),
                sampler=sampler.state_dict(),
                scheduler=scheduler and scheduler.state_dict(),
            )
    dynamic.detach()


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average over the ranks; they train the same subnets, so the same weights have gradients."""
    if WORLD > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= WORLD


def save(path: Path, **state: object) -> None:
    """Write a checkpoint; a stop while writing leaves the one before."""
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def report(
    options: argparse.Namespace,
    trained: list[tuple[SearchSpace, Supernet]],
    data: ImageData,
    folder: Path,
) -> None:
    """Score random subnets, each in the supernet that it was trained in."""
    architectures = drawn_subnets(PRESETS[options.preset].subnets)
    validation = list(batch_loader(data.validation, 256))
    accuracies = dict.fromkeys(map(key_of, architectures), 0.0)
    for space, supernet in trained:
        own = [architecture for architecture in architectures if architecture in space]
        # Its BN keeps no statistics: subnets are scored on those of the batch, as in the paper.
        for score in score_subnets(
            supernet, type(supernet).activate, own, validation, batch_norm="batch"
        ):
            accuracies[key_of(score.architecture)] = score.accuracy
    values = [accuracies[key_of(a)] for a in architectures]
    result = {"mean": float(np.mean(values)), "best": max(values)}
    if options.standalone is not None:
        table = dict(read_standalone(options.standalone))
        standalone = [table[key_of(a)] for a in architectures]
        sizes = list(map(trained[0][1].subnet_parameters(), architectures))
        result["tau"] = kendall_tau(values, standalone)
        result["tau of parameters"] = kendall_tau(sizes, standalone)
        result["stand-alone of the best"] = standalone[int(np.argmax(values))]
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    print(f"{folder.name}: " + ", ".join(f"{key} {value:.3f}" for key, value in result.items()))


def drawn_subnets(count: int) -> list[Architecture]:
    """Draw the same different subnets for every run."""
    numbers = np.random.default_rng(0).permutation(SPACE.size)[:count]
    every = list(SPACE)
    return [every[number] for number in numbers]


def key_of(architecture: Architecture) -> str:
    """Return NAS-Bench-201's own string: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."""
    return "+".join(
        "|" + "|".join(f"{architecture[f'{t}←{s}']}~{s}" for s in range(t)) + "|" for t in (1, 2, 3)
    )


def read_standalone(path: Path) -> Iterator[tuple[str, float]]:
    """Read architecture strings and accuracies from columns arch_str, c10_test200 of a table."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for row in csv.DictReader(lines):
            yield row["arch_str"], float(row["c10_test200"])


def load_data(options: argparse.Namespace) -> ImageData:
    """Load digits, which need nothing, torchvision's CIFAR10, or a folder of images."""
    if options.data == "digits":
        return digits()
    if options.data == "CIFAR10":
        return torchvision_set("CIFAR10", options.root, validation=0.5, download=options.download)
    return image_folder(options.data, 32, validation=0.5)


def set_up_device(name: str) -> torch.device:
    """Return this rank's device; join the other ranks where torchrun has started several."""
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    device = torch.device(name)
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0)))
        torch.accelerator.set_device_index(device.index)
    if WORLD > 1:
        dist.init_process_group()
    return device


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=["static", "calr", "ms", "dynamic"], default="dynamic")
    parser.add_argument("--sampler", choices=["spos", "fair", "fewshot"], default="spos")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--epochs", type=int, help="instead of the preset's, for each supernet")
    parser.add_argument("--data", default="digits", help="digits, CIFAR10, or a folder of images")
    parser.add_argument("--root", type=Path, default="data", help="where torchvision's sets are")
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--group-by", choices=SPACE.labels, default="3←0", help="edge of MS")
    parser.add_argument("--split", choices=SPACE.labels, default="1←0", help="edge of few-shot")
    parser.add_argument(
        "--as-published", action="store_true", help="fair, fewshot: as the authors' own scripts"
    )
    parser.add_argument("--standalone", type=Path, help="CSV of arch_str, c10_test200: prints τ")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/nasbench201"))
    options = parser.parse_args()
    if options.sampler == "fewshot" and options.group_by == options.split:
        parser.error("--group-by and --split must be different edges")
    if options.as_published and options.preset == "paper" and options.epochs is None:
        options.epochs = PUBLISHED_EPOCHS[options.sampler]
    return options


if __name__ == "__main__":
    main()
