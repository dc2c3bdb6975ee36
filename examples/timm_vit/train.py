"""Train an elastic vision transformer, statically and dynamically, and take one subnet away.

python examples/timm_vit/train.py --out runs/timm_vit
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.nn import functional as F

from nas_dynamic.adapters.timm import ElasticVisionTransformer, attach, build, elastic_vit
from nas_dynamic.evaluation import evaluate
from nas_dynamic.experiment.data import ImageData, Images, batch_loader
from nas_dynamic.experiment.data_sets import digits, image_folder
from nas_dynamic.search import Objective, RandomSearch, search_supernet


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data = image_folder(args.folder, args.size) if args.folder else upsampled(digits(), args.size)
    for arm in ("static", "dynamic"):
        start = time.perf_counter()
        supernet = make_supernet(args, data.classes)
        train(supernet, data, args, dynamic=arm == "dynamic")
        seconds = time.perf_counter() - start
        best = search(supernet, data, args, f"{arm}, {seconds:.0f} s")
        save(supernet, best, args.out / arm)
        check(supernet, best, data, args, args.out / arm)


def make_supernet(args: argparse.Namespace, classes: int) -> ElasticVisionTransformer:
    torch.manual_seed(args.seed)
    model = VisionTransformer(
        img_size=args.size,
        patch_size=args.size // 4,
        embed_dim=64,
        depth=4,
        num_heads=4,
        num_classes=classes,
        class_token=False,
        global_pool="avg",
    )
    return elastic_vit(
        model,
        depth=[2, 3, 4],
        embed_dim=[32, 48, 64],
        heads=[2, 3, 4],
        mlp_ratio=[2, 3, 4],
        attention=["softmax", "linear"],
    )


def train(
    supernet: ElasticVisionTransformer, data: ImageData, args: argparse.Namespace, dynamic: bool
) -> None:
    loader = batch_loader(data.train, args.batch_size, shuffle=True, seed=args.seed)
    optimizer = create_optimizer_v2(supernet, opt="adamw", lr=args.lr, weight_decay=0.05)
    # Both arms draw the same subnets and see the same batches.
    attached = attach(optimizer, supernet, calr=dynamic, momentum=dynamic, seed=args.seed)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        warmup_epochs=args.epochs // 10,
        warmup_lr=args.lr / 10,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    supernet.train()
    for epoch in range(args.epochs):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(supernet(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(supernet.parameters(), 1.0)
            optimizer.step()
            scheduler.step_update(attached.training.updates)
    attached.detach()
    supernet.eval()


def search(
    supernet: ElasticVisionTransformer, data: ImageData, args: argparse.Namespace, title: str
) -> dict:
    """Return the most accurate of some random subnets, on the validation images."""
    found = search_supernet(
        supernet,
        batch_loader(data.validation, 256),
        batch_norm="running",
        objectives=[Objective("accuracy", maximize=True)],
        strategy=RandomSearch(),
        budget=args.subnets,
        seed=args.seed,
    )
    accuracies = [evaluation.values["accuracy"] for evaluation in found.evaluations]
    print(
        f"{title}: {len(accuracies)} random subnets, validation accuracy "
        f"{min(accuracies):.3f} to {max(accuracies):.3f}, mean {np.mean(accuracies):.3f}"
    )
    return dict(found.best.architecture)


def save(supernet: ElasticVisionTransformer, architecture: dict, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "subnet.json").write_text(json.dumps(supernet.describe(architecture), indent=1))
    torch.save(supernet.extract(architecture).state_dict(), folder / "subnet.pt")


def check(
    supernet: ElasticVisionTransformer,
    architecture: dict,
    data: ImageData,
    args: argparse.Namespace,
    folder: Path,
) -> None:
    """Build the model from the two files; on the test images it scores what the subnet does."""
    model = build(json.loads((folder / "subnet.json").read_text()))
    model.load_state_dict(torch.load(folder / "subnet.pt", weights_only=True), strict=True)
    test = batch_loader(data.test, 256)
    supernet.activate(architecture)
    here, there = evaluate(supernet, test), evaluate(model, test)
    if here != there:
        raise RuntimeError(f"the saved model scores {there}, the subnet {here}")
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs()
    print(
        f"  best: test accuracy {there[0]:.3f}, in the supernet and rebuilt from {folder}; "
        f"{parameters(architecture):,} parameters, {macs(architecture) / 1e6:.2f} M MACs"
    )


def upsampled(data: ImageData, size: int) -> ImageData:
    def resize(images: Images) -> Images:
        pixels = F.interpolate(images.pixels.float(), (size, size), mode="bilinear")
        return dataclasses.replace(images, pixels=pixels.round().byte())

    return ImageData(resize(data.train), resize(data.validation), resize(data.test), data.classes)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="train/CLASS/… and val/CLASS/…; digits if not")
    parser.add_argument("--size", type=int, default=16, help="image size in pixels")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--subnets", type=int, default=50, help="random subnets to search among")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/timm_vit"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
