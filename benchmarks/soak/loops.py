"""Three training loops that save checkpoints, and go on from the last one in their folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.soak.plain_loop import PlainLoop
from nas_dynamic.storage import checkpoint


def train_plain(folder: Path) -> None:
    """Train 60 updates, with a checkpoint after every five."""
    loop, path = PlainLoop(60), folder / "last.pt"
    with contextlib.suppress(FileNotFoundError):
        loop.load_state_dict(checkpoint.load(path))
    while loop.dynamic.updates < 60:
        loop.update()
        loop.log.append([loop.dynamic.last.step, loop.sampled])
        if loop.dynamic.updates % 5 == 0:
            checkpoint.save(path, loop.state_dict())
    checkpoint.save(folder / "end.pt", {"weights": loop.model.state_dict(), "log": loop.log})


def train_timm(folder: Path) -> None:
    """Train 8 epochs of 3 updates as timm's train.py does, with EMA and its CheckpointSaver."""
    from timm.models import load_checkpoint, resume_checkpoint
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import CheckpointSaver, ModelEmaV3

    from nas_dynamic.adapters.timm import attach, mobile_supernet

    epochs, updates = 8, 3
    torch.manual_seed(0)
    model = mobile_supernet(
        [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e2_c8"], ["ir_r2_k3_s2_e2_c16"]],
        kernel=(3, 5),
        expansion=(1, 2),
        stem_size=8,
        num_features=16,
        num_classes=4,
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.05, weight_decay=0.01)
    attached = attach(optimizer, model, momentum=True)
    ema, start, last = ModelEmaV3(model, decay=0.5), 0, folder / "last.pth.tar"
    if last.exists():
        start = resume_checkpoint(model, str(last), optimizer, log_info=False)
        load_checkpoint(ema.module, str(last), use_ema=True)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs)
    scheduler.step(start)
    saver = CheckpointSaver(
        model, optimizer, model_ema=ema, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(updates, 4, 3, 16, 16, generator=generator)
    classes = torch.randint(4, (updates, 4), generator=generator)
    model.train()
    for epoch in range(start, epochs):
        for x, y in zip(images, classes, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            ema.update(model)
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=float(epoch))
    weights = {"model": model.state_dict(), "ema": ema.module.state_dict()}
    checkpoint.save(folder / "end.pt", {"weights": weights, "updates": attached.training.updates})


def train_nni(folder: Path) -> None:
    """Train as `nas-dynamic train` does: an NNI experiment, 4 epochs of 16 updates."""
    from nas_dynamic.experiment.config import parse
    from nas_dynamic.experiment.nni.supernet import train_supernet
    from nas_dynamic.experiment.run import load_data

    config = parse(
        {
            "space": {
                "name": "NasBench201",
                "kwargs": {"stem_out_channels": 4, "num_modules_per_stack": 1},
            },
            "data": {"name": "digits", "validation": 0.4, "test": 0.6},
            "epochs": 4,
            "batch_size": 27,
            "device": "cpu",
        }
    )
    data = load_data(config.data)
    trained = train_supernet(
        config, data, 0, progress=lambda done, total, loss: None, folder=folder
    )
    log = [[row["step"], row] for row in trained.recorder.rows]
    checkpoint.save(folder / "end.pt", {"weights": trained.supernet.model.state_dict(), "log": log})


LOOPS: dict[str, Callable[[Path], None]] = {
    "plain": train_plain,
    "timm": train_timm,
    "nni": train_nni,
}
"""Each ends with its weights, and what it has to show for its updates, in `end.pt`."""
