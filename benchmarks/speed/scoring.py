"""Speed of scoring subnets: `python -m benchmarks.speed.scoring`.

Scores random subnets of a timm MobileNet supernet (21 layers, 7 operations, reduced width) on
JPEG files, with BN recalibration: by the plain loop, which reads the files with a DataLoader for
each subnet, activates it, and recalibrates it by torch's own cumulative averages; and by
`score_subnets`. Images are random if no folder is given: neither speed nor equality needs more. On
a GPU every way is taken twice, and both are told: cuDNN plans each convolution that it has not met.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models._efficientnet_builder import round_channels
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from nas_dynamic.adapters.timm import Supernet, mobile_supernet
from nas_dynamic.evaluation import Score, score_subnets
from nas_dynamic.space import Architecture, key

STAGES = [(32, 4), (40, 4), (80, 4), (96, 4), (192, 4), (320, 1)]
STRIDES = (2, 2, 1, 1, 1, 1)
CLASSES = 10


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    supernet = _supernet().to(options.device)
    generator = np.random.default_rng(0)
    architectures = [supernet.space.sample(generator) for _ in range(options.subnets)]
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or _random_images(Path(folder), options.images + options.calibration)
        images, calibration = _loaders(root, options.images, options.calibration, options.batch)
        ours = partial(
            score_subnets,
            supernet,
            type(supernet).activate,
            batches=images,
            calibration=calibration,
        )
        shared = partial(ours, layers=supernet.layer_labels)
        ways: dict[str, Callable[[list[Architecture]], Iterator[Score]]] = {
            "score_subnets": ours,
            "… and shared layers": shared,
        }
        if options.device == "cpu":
            shared = ways["… and two threads"] = partial(shared, devices=["cpu"] * 2)
        ways["… and bf16"] = partial(shared, precision="bf16-mixed")
        _print(supernet, images, calibration, architectures, ways, options)


def _print(supernet, images, calibration, architectures, ways, options) -> None:
    times = 1 if options.device == "cpu" else 2

    def plainly() -> list[Score]:
        return _plain_loop(supernet, images, calibration, architectures[: options.plain])

    plain, *_, seconds = _timed(plainly, times)
    each = seconds / options.plain
    print(
        f"{options.subnets} subnets, {options.images} images, {options.calibration} to recalibrate "
        f"on; the plain loop was timed on {options.plain} of them"
    )
    print(f"{'plain loop':22} {each * 1e3:8.0f} ms a subnet")
    for name, way in ways.items():
        found, *before, seconds = _timed(lambda way=way: list(way(architectures)), times)
        ours = {key(score.architecture): score for score in found}
        differences = [
            (
                abs(s.accuracy - ours[key(s.architecture)].accuracy),
                abs(s.loss - ours[key(s.architecture)].loss),
            )
            for s in plain
        ]
        accuracy, loss = np.max(differences, 0)
        took = seconds / len(architectures)
        print(
            f"{name:22} {took * 1e3:8.0f} ms a subnet   {each / took:5.1f}×   greatest difference: "
            f"{accuracy * options.images:.0f} images, {loss:.1e} of the loss"
            + "".join(f"; at first {s / len(architectures) * 1e3:.0f} ms" for s in before),
            flush=True,
        )


def _plain_loop(
    supernet: nn.Module,
    images: DataLoader,
    calibration: DataLoader,
    architectures: list[Architecture],
) -> list[Score]:
    """Score as one does without this package."""
    scores = []
    device = next(supernet.parameters()).device
    norms = [m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)]
    for architecture in architectures:
        supernet.activate(architecture)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            supernet.train()
            for x, _ in calibration:
                supernet(x.to(device))
            supernet.eval()
            loss, right = 0.0, 0
            for x, y in images:
                x, y = x.to(device), y.to(device)
                logits = supernet(x)
                loss += nn.functional.cross_entropy(logits, y, reduction="sum").item()
                right += int((logits.argmax(1) == y).sum())
        count = len(images.dataset)
        scores.append(Score(architecture, right / count, loss / count))
    return scores


def _supernet() -> Supernet:
    arch_def = [["ds_r1_k3_s1_e1_c16"]]
    for (channels, layers), stride in zip(STAGES, STRIDES, strict=True):
        arch_def.append([f"ir_r{layers}_k3_s{stride}_e6_c{channels}"])
    return mobile_supernet(
        arch_def,
        kernel=(3, 5, 7),
        expansion=(3, 6),
        skip=True,
        num_classes=CLASSES,
        round_chs_fn=partial(round_channels, multiplier=0.25),
        num_features=320,
    )


def _loaders(root: Path, images: int, calibration: int, batch: int) -> list[DataLoader]:
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    )
    folder = ImageFolder(str(root), transform)
    order = np.random.default_rng(0).permutation(len(folder)).tolist()
    if len(order) < images + calibration:
        raise SystemExit(f"{root} has {len(order)} images; {images + calibration} are needed")
    parts = order[:images], order[images : images + calibration]
    return [DataLoader(Subset(folder, part), batch) for part in parts]


def _random_images(root: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    for number in range(count):
        path = root / str(number % CLASSES) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    return root


def _timed(work: Callable[[], list[Score]], times: int) -> tuple[Any, ...]:
    """Return what is scored, and the seconds of each time."""
    marks = [time.perf_counter()]
    for _ in range(times):
        found = work()
        marks.append(time.perf_counter())
    return found, *np.diff(marks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.scoring", description=__doc__)
    parser.add_argument("--data", type=Path, help="image folder, CLASS/*.jpg; random by default")
    parser.add_argument("--subnets", type=int, default=300)
    parser.add_argument("--plain", type=int, default=20, help="subnets that the plain loop scores")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--calibration", type=int, default=512, help="images to recalibrate on")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    return parser


if __name__ == "__main__":
    main()
