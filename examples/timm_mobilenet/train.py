"""Train a MobileNet supernet in timm's loop, statically and dynamically; take one subnet away.

python examples/timm_mobilenet/train.py --data-dir PATH
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import Images, digits_folder
from mobilenet import make_supernet
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, ParseKwargs, random_seed
from torch import nn

from nas_dynamic.adapters.timm import Supernet, attach, build
from nas_dynamic.evaluation import evaluate, recalibrate
from nas_dynamic.search import Objective, RandomSearch, search_supernet

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "width": 0.25,
        "image_size": 32,
        "strides": (2, 2, 1, 1, 1, 1),
        "epochs": 80,
        "warmup_epochs": 4,
        "batch_size": 64,
        "opt": "adamw",
        "opt_kwargs": {"fused": True},
        "lr": 4e-3,
        "align": True,
        "gamma_by": "rank",
    },
    "paper": {
        "width": 1.0,
        "image_size": 224,
        "strides": (2, 2, 2, 1, 2, 1),
        "epochs": 120,
        "warmup_epochs": 0,
        "batch_size": 1024,
        "opt": "sgd",
        "opt_kwargs": {},
        "lr": 0.5,
        "align": False,
        "gamma_by": "complexity",
    },
}

ELSEWHERE = ("out", "device", "threads", "workers")
"""Options that may change when a run goes on."""


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    begin_or_go_on(args)
    data = Images(
        args.data_dir or digits_folder(args.out / "digits"),
        args.image_size,
        train_images=args.train_images,
        validation_images=args.validation_images,
        mirrored=args.data_dir is not None,  # a mirrored digit is none
        workers=args.workers,
    )
    for arm in ("static", "dynamic"):
        torch.manual_seed(args.seed)
        supernet = make_supernet(data.classes, args.width, args.strides, args.align)
        supernet = supernet.to(args.device, memory_format=torch.channels_last)
        train(supernet, data, args, args.out / arm)
        result = args.out / arm / "result.json"
        if not result.exists():
            result.write_text(json.dumps(search(supernet, data, args, args.out / arm), indent=1))
        print(arm, result.read_text())


def begin_or_go_on(args: argparse.Namespace) -> None:
    """Keep the options in the folder, or check that it has a run with the same ones."""
    options = {name: value for name, value in vars(args).items() if name not in ELSEWHERE}
    text = json.dumps(options, indent=1, default=str)
    saved = args.out / "args.json"
    if saved.exists() and saved.read_text() != text:
        before, now = json.loads(saved.read_text()), json.loads(text)
        changed = [name for name in now if now[name] != before.get(name)]
        raise SystemExit(
            f"{args.out} has a run with other options: "
            + ", ".join(f"{name} {before.get(name)}, now {now[name]}" for name in changed)
            + ". Give the same to go on with it, or another --out"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    saved.write_text(text)


def train(supernet: Supernet, data: Images, args: argparse.Namespace, folder: Path) -> None:
    """Train the supernet, with one added line."""
    optimizer = create_optimizer_v2(
        supernet, opt=args.opt, lr=args.lr, momentum=0.9, weight_decay=4e-5, **args.opt_kwargs
    )
    # Both arms draw the same subnets.
    dynamic = folder.name == "dynamic"
    attached = attach(
        optimizer, supernet, calr=dynamic, momentum=dynamic, gamma_by=args.gamma_by, seed=args.seed
    )
    fit(supernet, optimizer, data, args, folder, args.epochs, args.warmup_epochs)
    attached.detach()


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Images,
    args: argparse.Namespace,
    folder: Path,
    epochs: int,
    warmup_epochs: int = 0,
    ema: ModelEmaV3 | None = None,
) -> None:
    """Train in the loop of timm's train.py, from the last checkpoint in the folder on."""
    loader = data.loader("train", args.batch_size)
    scaler = NativeScaler(device="cuda") if args.device == "cuda" else None
    start = 0
    checkpoints = {int(p.name.split(".")[0].split("-")[1]): p for p in folder.glob("*-*.pth.tar")}
    if checkpoints:
        newest = str(checkpoints[max(checkpoints)])
        start = resume_checkpoint(model, newest, optimizer, scaler, log_info=False)
        if ema is not None:
            load_checkpoint(ema.module, newest, use_ema=True)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=warmup_epochs,
        warmup_lr=args.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    updates = start * len(loader)
    scheduler.step_update(updates)
    folder.mkdir(parents=True, exist_ok=True)
    saver = CheckpointSaver(
        model,
        optimizer,
        model_ema=ema,
        amp_scaler=scaler,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        max_history=2,
    )
    model.train()
    for epoch in range(start, epochs):
        # Both arms, and a run that goes on, see the same batches.
        random_seed(1000 * args.seed, rank=epoch)
        started, losses = time.perf_counter(), []
        for images, labels in loader:
            images = images.to(args.device, memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast(args.device, enabled=scaler is not None):
                loss = nn.functional.cross_entropy(
                    model(images), labels.to(args.device), label_smoothing=0.1
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
            losses.append(loss.detach())
        saver.save_checkpoint(epoch)
        seconds = time.perf_counter() - started
        print(
            f"{folder}: epoch {epoch + 1} of {epochs}, loss {torch.stack(losses).mean():.3f}, "
            f"{seconds:.1f} s",
            flush=True,
        )
    model.eval()


def search(
    supernet: Supernet, data: Images, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Save the best of some random subnets, build it again, score it again, and fine-tune it."""
    calibration = data.batches("calibration", 128)
    validation = data.batches("validation", 256)
    found = search_supernet(
        supernet,
        validation,
        calibration=calibration,
        objectives=[Objective("accuracy", maximize=True)],
        strategy=RandomSearch(),
        budget=args.subnets,
        seed=args.seed,
        path=folder / "search.jsonl",
    )
    best = found.best

    subnet = supernet.extract(best.architecture)
    recalibrate(subnet, calibration)
    recipe = supernet.describe(best.architecture)
    (folder / "subnet.json").write_text(json.dumps(recipe, indent=1))
    torch.save(subnet.state_dict(), folder / "subnet.pt")

    model = build(json.loads((folder / "subnet.json").read_text()))
    model = model.to(args.device, memory_format=torch.channels_last)
    model.load_state_dict(torch.load(folder / "subnet.pt", weights_only=True), strict=True)
    accuracy, loss = evaluate(model, validation)
    if (accuracy, loss) != (best.values["accuracy"], best.values["loss"]):
        raise RuntimeError(f"the saved model scores {accuracy}, the subnet {best.values}")
    test = data.loader("test", 256)
    inherited, _ = evaluate(model, test)
    tuned, _ = evaluate(fine_tune(model, data, args, folder / "tuned"), test)
    accuracies = [evaluation.values["accuracy"] for evaluation in found.evaluations]
    return {
        "validation of random subnets": [
            round(float(value), 4)
            for value in (min(accuracies), np.mean(accuracies), max(accuracies))
        ],
        "best, in the supernet": round(best.values["accuracy"], 4),
        "best, extracted": round(accuracy, 4),
        "parameters": int(best.values["parameters"]),
        "MACs": int(supernet.subnet_macs(args.image_size)(best.architecture)),
        "test, inherited weights": round(inherited, 4),
        "test, fine-tuned": round(tuned, 4),
    }


def fine_tune(model: nn.Module, data: Images, args: argparse.Namespace, folder: Path) -> nn.Module:
    """timm's optimizer with layer decay, schedule and EMA, on a plain timm model."""
    optimizer = create_optimizer_v2(
        model,
        opt=args.opt,
        lr=args.lr / 5,
        momentum=0.9,
        weight_decay=4e-5,
        layer_decay=0.9,
        **args.opt_kwargs,
    )
    ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
    fit(model, optimizer, data, args, folder, args.tune_epochs, ema=ema)
    torch.save(ema.module.state_dict(), folder / "model.pt")
    return ema.module


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="A run that was stopped goes on when it is started again with the same options.",
    )
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument(
        "--data-dir", type=Path, help="train/CLASS/… and val/ or test/; else digits"
    )
    parser.add_argument("--train-images", type=int, help="use this many at most; all by default")
    parser.add_argument("--validation-images", type=int, help="held out of train/; a tenth")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--warmup-epochs", type=int)
    parser.add_argument("--tune-epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--opt", help="an optimizer of timm")
    parser.add_argument("--opt-kwargs", nargs="*", action=ParseKwargs, help="KEY=VALUE …")
    parser.add_argument("--lr", type=float)
    parser.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        help="start the candidates of a layer alike; by default in the small preset only",
    )
    parser.add_argument(
        "--gamma-by",
        choices=("rank", "complexity"),
        help="complexity: the paper's γ, default of the paper preset; else by rank",
    )
    parser.add_argument("--subnets", type=int, default=30, help="random subnets to choose among")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/timm_mobilenet"))
    args = parser.parse_args()
    if args.opt is not None and args.opt_kwargs is None:
        args.opt_kwargs = {}  # those of a preset are for its optimizer
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if args.preset == "paper" and args.data_dir is None:
        parser.error("--preset paper needs --data-dir, ImageNet as an image folder")
    return args


if __name__ == "__main__":
    main()
