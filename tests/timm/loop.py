"""A training loop of the shape of timm's train.py, and the same training written out."""

from __future__ import annotations

import copy
import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import nn

from nas_dynamic.adapters.timm import LayerChoiceSupernet, attach, mobile_supernet
from tests.attach.reference import coast

ARCH_DEF = [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e2_c8"], ["ir_r2_k3_s2_e2_c16"]]
GROUP = "blocks.1.1"


@dataclass(frozen=True)
class Options:
    opt: str = "sgd"
    sched_on_updates: bool = False
    scaler: bool = False
    grad_accum_steps: int = 1
    ema: bool = False
    clip_mode: str | None = None
    layer_decay: float | None = None
    idle: str = "coast"
    resumed: bool = False
    epochs: int = 3


def tiny_supernet(seed: int = 0) -> LayerChoiceSupernet:
    return copy.deepcopy(_tiny_supernet(seed))


@functools.cache
def _tiny_supernet(seed: int) -> LayerChoiceSupernet:
    torch.manual_seed(seed)
    return mobile_supernet(
        ARCH_DEF,
        kernel=(3, 5),
        expansion=(1, 2),
        skip=True,
        stem_size=8,
        num_features=16,
        num_classes=4,
    )


def random_subnets(supernet: Any, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random subnets, no two alike where the space has so many."""
    generator, space = np.random.default_rng(seed), supernet.space
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    while len(found) < min(count, space.size):
        architecture = space.sample(generator)
        found[tuple(architecture.values())] = architecture
    return [*found.values()]


def batches(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(4, 3, 16, 16, generator=generator),
            torch.randint(4, (4,), generator=generator),
        )
        for _ in range(count)
    ]


def optimizer_for(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    return create_optimizer_v2(
        model,
        opt=options.opt,
        lr=0.05,
        weight_decay=0.01,
        momentum=0.9,
        layer_decay=options.layer_decay,
    )


def scheduler_for(optimizer: torch.optim.Optimizer, options: Options, updates: int) -> Any:
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=options.epochs,
        warmup_epochs=1,
        warmup_lr=1e-3,
        step_on_epochs=not options.sched_on_updates,
        updates_per_epoch=updates,
    )
    return scheduler


def train(
    options: Options,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    supernet: Any = None,
    folder: Any = None,
    resume: str | None = None,
    stop_after: int | None = None,
    **attach_options: Any,
) -> dict[str, Any]:
    """timm's train.py with `attach` after `create_optimizer_v2`; nothing else is added."""
    model = supernet if supernet is not None else tiny_supernet()
    optimizer = optimizer_for(model, options)
    attached = attach(optimizer, model, idle=options.idle, **attach_options)

    loss_scaler = NativeScaler(device="cpu") if options.scaler else None
    start_epoch = 0
    if resume:
        start_epoch = resume_checkpoint(model, resume, optimizer, loss_scaler, log_info=False)
    model_ema = None
    if options.ema:
        model_ema = ModelEmaV3(model, decay=0.5)
        if resume:
            load_checkpoint(model_ema.module, resume, use_ema=True)
    updates_per_epoch = math.ceil(len(data) / options.grad_accum_steps)
    lr_scheduler = scheduler_for(optimizer, options, updates_per_epoch)
    if start_epoch:
        if options.sched_on_updates:
            lr_scheduler.step_update(start_epoch * updates_per_epoch)
        else:
            lr_scheduler.step(start_epoch)
    saver = None
    if folder:
        saver = CheckpointSaver(
            model,
            optimizer,
            model_ema=model_ema,
            amp_scaler=loss_scaler,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
        )

    used = []
    validated = []
    for epoch in range(start_epoch, stop_after or options.epochs):
        model.train()
        accum_steps = options.grad_accum_steps
        last_accum_steps = len(data) % accum_steps
        num_updates = epoch * updates_per_epoch
        optimizer.zero_grad()
        for batch_idx, (x, y) in enumerate(data):
            need_update = batch_idx == len(data) - 1 or (batch_idx + 1) % accum_steps == 0
            if batch_idx >= len(data) - last_accum_steps:
                accum_steps = last_accum_steps
            with torch.autocast("cpu", torch.bfloat16) if options.scaler else nullcontext():
                loss = nn.functional.cross_entropy(model(x), y)
            if accum_steps > 1:
                loss = loss / accum_steps
            clip = None if options.clip_mode is None else 0.1
            if loss_scaler is not None:
                loss_scaler(
                    loss,
                    optimizer,
                    clip_grad=clip,
                    clip_mode=options.clip_mode or "norm",
                    parameters=model.parameters(),
                    need_update=need_update,
                )
            else:
                loss.backward()
                if need_update:
                    if clip is not None:
                        dispatch_clip_grad(model.parameters(), clip, mode=options.clip_mode)
                    optimizer.step()
            if not need_update:
                continue
            num_updates += 1
            optimizer.zero_grad()
            if model_ema is not None:
                model_ema.update(model, step=num_updates)
            lr_scheduler.step_update(num_updates=num_updates)
            used.append(attached.training.last)
        model.eval()
        with torch.no_grad():
            validated.append(model(data[0][0]))
        lr_scheduler.step(epoch + 1)
        if saver is not None:
            saver.save_checkpoint(epoch, metric=float(epoch))
    return {
        "model": model,
        "ema": model_ema.module if model_ema else None,
        "attached": attached,
        "used": used,
        "validated": validated,
    }


def train_by_hand(
    options: Options, data: list[tuple[torch.Tensor, torch.Tensor]], used: list[Any], gamma: Any
) -> dict[str, Any]:
    """One optimizer a group, the lr from the formula, the given subnets in turn."""
    model = tiny_supernet()
    updates_per_epoch = math.ceil(len(data) / options.grad_accum_steps)
    ema = ModelEmaV3(model, decay=0.5) if options.ema else None
    scheduled = optimizer_for(tiny_supernet(), options)
    lr_scheduler = scheduler_for(scheduled, options, updates_per_epoch)
    peaks = [0.0] * len(scheduled.param_groups)
    optimizers: dict[Any, torch.optim.Optimizer] = {}
    trained: set[torch.Tensor] = set()
    done = 0
    for epoch in range(options.epochs):
        model.train()
        for start in range(0, len(data), options.grad_accum_steps):
            architecture = used[done].architecture
            model.activate(architecture)
            micro_batches = data[start : start + options.grad_accum_steps]
            for x, y in micro_batches:
                with torch.autocast("cpu", torch.bfloat16) if options.scaler else nullcontext():
                    loss = nn.functional.cross_entropy(model(x), y)
                (loss / len(micro_batches)).backward()
            if options.clip_mode is not None:
                dispatch_clip_grad(model.parameters(), 0.1, mode=options.clip_mode)
            if options.idle == "coast":
                coast(model.parameters(), trained)
            group = architecture[GROUP]
            if group not in optimizers:
                optimizers[group] = optimizer_for(model, options)
            peaks = [max(p, g["lr"]) for p, g in zip(peaks, scheduled.param_groups, strict=True)]
            for own, planned, peak in zip(
                optimizers[group].param_groups, scheduled.param_groups, peaks, strict=True
            ):
                own["lr"] = planned["lr"] * (planned["lr"] / peak) ** (gamma(architecture) - 1)
            optimizers[group].step()
            model.zero_grad()
            done += 1
            if ema is not None:
                ema.update(model, step=done)
            lr_scheduler.step_update(num_updates=done)
        lr_scheduler.step(epoch + 1)
    return {"model": model, "ema": ema.module if ema else None, "groups": len(optimizers)}
