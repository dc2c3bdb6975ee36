"""Stand-alone scores of subnets, each trained by itself: what a supernet is asked to predict."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from nas_dynamic.evaluation.inference import autocast
from nas_dynamic.evaluation.score_cache import digest, kept_scores
from nas_dynamic.evaluation.scoring import Score, evaluate
from nas_dynamic.experiment.config import Config
from nas_dynamic.experiment.data import BatchSampler, ImageData, Images, batch_loader
from nas_dynamic.experiment.engine import Engine, Place
from nas_dynamic.experiment.nni.build import build_optimizer, build_subnet
from nas_dynamic.space import Architecture, key

__all__ = ["standalone_scores", "train_standalone"]


def standalone_scores(
    config: Config,
    data: ImageData,
    architectures: Iterable[Architecture],
    epochs: int,
    folder: Path,
    engine: Engine,
    *,
    on: Literal["test", "validation"] = "test",
    seed: int = 0,
    updates: int | None = None,
) -> list[Score]:
    """Return the score of every architecture when it is trained alone.

    Args:
        config: space, optimizer, batch size, precision and device.
        data: the images.
        architectures: what to train.
        epochs: of each.
        folder: the scores are kept there, in a file that `nas-dynamic report --standalone` takes,
            and serve whatever has the same settings.
        engine: trains them.
        on: images that are scored; those of validation to choose by.
        seed: of the weights and of the order of the images.
        updates: end of each training within its epochs.
    """
    depends_on = {
        "epochs": epochs,
        "on": on,
        "seed": seed,
        "device": config.torch_device.type,
        "torch": torch.__version__,
        **({} if updates is None else {"updates": updates}),
        **config.model_dump(
            include={"space", "data", "optimizer", "batch_size", "precision"}, mode="json"
        ),
    }

    train = partial(_trained_score, config, data, epochs, on, seed, updates)
    wanted = list(architectures)
    path = folder / f"standalone-{digest(depends_on)[:12]}.jsonl"
    progress, scores = engine.work("train subnets alone"), {}
    for score in kept_scores(path, depends_on, wanted, partial(engine.map, train)):
        scores[key(score.architecture)] = score
        progress(len(scores), len({key(architecture) for architecture in wanted}))
    return [scores[key(architecture)] for architecture in wanted]


def _trained_score(
    config: Config,
    data: ImageData,
    epochs: int,
    on: Literal["test", "validation"],
    seed: int,
    updates: int | None,
    architecture: Architecture,
    place: Place,
) -> Score:
    torch.manual_seed(seed)
    model = build_subnet(config, data.classes, architecture).to(config.torch_device)
    train_standalone(
        model,
        data.train,
        build_optimizer(config, model.parameters()),
        epochs=epochs,
        batch_size=config.batch_size,
        precision=config.precision,
        seed=seed,
        updates=updates,
    )
    images = batch_loader(getattr(data, on), config.scoring.batch_size)
    return Score(architecture, *evaluate(model, images, precision=config.precision))


def train_standalone(
    model: nn.Module,
    images: Images,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    precision: str = "32",
    seed: int = 0,
    updates: int | None = None,
) -> None:
    """Train a classifier, on the device that it is on, with a cosine decay of the lr to zero.

    It ends after the epochs, or after so many updates of them.
    """
    device = next(model.parameters()).device
    batches = batch_loader(images, batch_size, shuffle=True, seed=seed)
    assert isinstance(batches.sampler, BatchSampler)
    steps = min(epochs * len(batches), updates or epochs * len(batches))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
    model.train()
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        for inputs, labels in islice(batches, max(0, steps - epoch * len(batches))):
            optimizer.zero_grad()
            with autocast(device, precision):
                logits = model(inputs.to(device))
            loss = nn.functional.cross_entropy(logits.float(), labels.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            decay.step()
