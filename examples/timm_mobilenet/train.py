"""Train a MobileNet supernet in timm's loop, statically and dynamically; take one subnet away.

python examples/timm_mobilenet/train.py --data-dir PATH
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from timm.models._efficientnet_builder import round_channels
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder

from nas_dynamic.adapters.timm import Supernet, attach, build, mobile_supernet
from nas_dynamic.evaluation import evaluate, recalibrate, score_subnets

# 21 searched layers with 7 operations: kernel 3, 5, 7 × expansion 3, 6, and skip where it can be.
STAGES = [(32, 4), (40, 4), (80, 4), (96, 4), (192, 4), (320, 1)]

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "width": 0.25,
        "image_size": 32,
        "strides": (2, 2, 1, 1, 1, 1),
        "epochs": 40,
        "batch_size": 32,
        "opt": "adamw",
        "lr": 2e-3,
        "align": True,
    },
    "paper": {
        "width": 1.0,
        "image_size": 224,
        "strides": (2, 2, 2, 1, 2, 1),
        "epochs": 120,
        "batch_size": 1024,
        "opt": "sgd",
        "lr": 0.5,
        "align": False,
    },
}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    data_dir = args.data_dir or digits_folder(args.out / "digits")
    data = Data(data_dir, args)
    results = {}
    for arm in ("static", "dynamic"):
        torch.manual_seed(args.seed)
        supernet = make_supernet(data.classes, args).to(args.device)
        started = time.perf_counter()
        train(supernet, data, args, dynamic=arm == "dynamic")
        seconds = time.perf_counter() - started
        results[arm] = {"seconds": round(seconds)} | search(supernet, data, args, args.out / arm)
        print(arm, json.dumps(results[arm]))
    (args.out / "results.json").write_text(json.dumps(results, indent=1))


def make_supernet(classes: int, args: argparse.Namespace) -> Supernet:
    arch_def = [["ds_r1_k3_s1_e1_c16"]]
    for (channels, layers), stride in zip(STAGES, args.strides, strict=True):
        arch_def.append([f"ir_r{layers}_k3_s{stride}_e6_c{channels}"])
    supernet = mobile_supernet(
        arch_def,
        kernel=(3, 5, 7),
        expansion=(3, 6),
        skip=True,
        num_classes=classes,
        round_chs_fn=partial(round_channels, multiplier=args.width),
        num_features=round_channels(1280, args.width),
    )
    if args.align:
        align(supernet)
    return supernet


def align(supernet: Supernet) -> None:
    """Start all candidates of a layer alike, and residual layers as the identity.

    Subnets then compute similar features from the first update on, which short trainings need:
    with independent candidates the small preset has learnt nothing after 500 updates.
    """
    largest = supernet.space.largest(supernet.subnet_parameters())
    model = supernet.extract(largest)
    for module in model.modules():
        if getattr(module, "has_skip", False) and hasattr(module, "bn3"):
            nn.init.zeros_(module.bn3.weight)
    supernet.inherit(model, largest, crop=True)


def train(supernet: Supernet, data: Data, args: argparse.Namespace, dynamic: bool) -> None:
    """The loop of timm's train.py, with one added line."""
    loader = data.loader("train", args.batch_size)
    optimizer = create_optimizer_v2(
        supernet, opt=args.opt, lr=args.lr, momentum=0.9, weight_decay=4e-5
    )
    # Both arms draw the same subnets.
    attached = attach(optimizer, supernet, calr=dynamic, momentum=dynamic, seed=args.seed)
    fit(supernet, optimizer, loader, args, epochs=args.epochs)
    attached.detach()


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    args: argparse.Namespace,
    epochs: int,
    ema: ModelEmaV3 | None = None,
) -> None:
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    scaler = NativeScaler(device="cuda") if args.device == "cuda" else None
    model.train()
    updates = 0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast(args.device, enabled=scaler is not None):
                loss = nn.functional.cross_entropy(
                    model(images.to(args.device)), labels.to(args.device), label_smoothing=0.1
                )
            if scaler is not None:
                scaler(loss, optimizer, 5.0, parameters=model.parameters())
            else:
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
            updates += 1
            if ema is not None:
                ema.update(model, step=updates)
            scheduler.step_update(updates)
    model.eval()


def search(
    supernet: Supernet, data: Data, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """The best of some random subnets: saved, built again, scored again, and fine-tuned."""
    generator = np.random.default_rng(args.seed)
    drawn = [supernet.space.sample(generator) for _ in range(args.subnets)]
    calibration = data.calibration()
    validation = list(data.loader("validation", 256))
    scores = list(
        score_subnets(supernet, type(supernet).activate, drawn, validation, calibration=calibration)
    )
    best = max(scores, key=lambda score: score.accuracy)

    subnet = supernet.extract(best.architecture)
    recalibrate(subnet, calibration)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = supernet.describe(best.architecture)
    (folder / "subnet.json").write_text(json.dumps(recipe, indent=1))
    torch.save(subnet.state_dict(), folder / "subnet.pt")

    model = build(json.loads((folder / "subnet.json").read_text())).to(args.device)
    model.load_state_dict(torch.load(folder / "subnet.pt", weights_only=True), strict=True)
    accuracy, loss = evaluate(model, validation)
    if (accuracy, loss) != (best.accuracy, best.loss):
        raise RuntimeError(f"the saved model scores {accuracy}, the subnet {best.accuracy}")
    test = list(data.loader("test", 256))
    inherited, _ = evaluate(model, test)
    tuned, _ = evaluate(fine_tune(model, data, args), test)
    accuracies = [score.accuracy for score in scores]
    return {
        "validation of random subnets": [
            round(float(value), 4)
            for value in (min(accuracies), np.mean(accuracies), max(accuracies))
        ],
        "best, in the supernet": round(best.accuracy, 4),
        "best, extracted": round(accuracy, 4),
        "parameters": int(supernet.subnet_parameters()(best.architecture)),
        "MACs": int(supernet.subnet_macs(args.image_size)(best.architecture)),
        "test, inherited weights": round(inherited, 4),
        "test, fine-tuned": round(tuned, 4),
    }


def fine_tune(model: nn.Module, data: Data, args: argparse.Namespace) -> nn.Module:
    """timm's optimizer with layer decay, schedule and EMA, on a plain timm model."""
    loader = data.loader("train", args.batch_size)
    optimizer = create_optimizer_v2(
        model, opt=args.opt, lr=args.lr / 5, momentum=0.9, weight_decay=4e-5, layer_decay=0.9
    )
    ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
    fit(model, optimizer, loader, args, args.tune_epochs, ema)
    return ema.module


class Data:
    """An image folder with timm's transforms; a part of the training images is for validation."""

    def __init__(self, root: Path, args: argparse.Namespace) -> None:
        self.args = args
        size = (3, args.image_size, args.image_size)
        small = args.image_size < 64
        plain = create_transform(size, crop_pct=1.0 if small else 0.875)
        augmented = create_transform(
            size,
            is_training=True,
            scale=(0.6, 1.0) if small else (0.08, 1.0),
            hflip=0.0 if args.data_dir is None else 0.5,  # a mirrored digit is none
        )
        test = root / ("val" if (root / "val").is_dir() else "test")
        train = ImageFolder(str(root / "train"), augmented)
        plain_train = ImageFolder(str(root / "train"), plain)
        tested = ImageFolder(str(test), plain)
        self.classes = len(train.classes)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        held_out = args.validation_images or len(order) // 10
        kept = order[held_out:][: args.train_images]
        self.parts: dict[str, Dataset] = {
            "train": Subset(train, kept),
            "calibration": Subset(plain_train, kept[:512]),
            "validation": Subset(plain_train, order[:held_out]),
            "test": tested,
        }

    def loader(self, part: str, batch_size: int) -> DataLoader:
        """Batches of a part; those of training are shuffled and augmented."""
        training = part == "train"
        return DataLoader(
            self.parts[part],
            batch_size,
            shuffle=training,
            drop_last=training,
            num_workers=self.args.workers,
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def calibration(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Training images, not augmented, for the statistics of BN layers."""
        return list(self.loader("calibration", 128))


def digits_folder(root: Path) -> Path:
    """scikit-learn's digits as an image folder."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    for i, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        folder = root / ("test" if i % 4 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(folder / f"{i}.png")
    return root


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument(
        "--data-dir", type=Path, help="train/CLASS/… and val/ or test/; else digits"
    )
    parser.add_argument("--train-images", type=int, help="use this many at most; all by default")
    parser.add_argument("--validation-images", type=int, help="held out of train/; a tenth")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--tune-epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--opt", help="an optimizer of timm")
    parser.add_argument("--lr", type=float)
    parser.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        help="start the candidates of a layer alike; by default in the small preset only",
    )
    parser.add_argument("--subnets", type=int, default=30, help="random subnets to choose among")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/timm_mobilenet"))
    args = parser.parse_args()
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if args.preset == "paper" and args.data_dir is None:
        parser.error("--preset paper needs --data-dir, ImageNet as an image folder")
    return args


if __name__ == "__main__":
    main()
