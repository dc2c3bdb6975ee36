"""The objects that frameworks put around an optimizer; each raises ImportError without its own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["WRAPPERS"]


def accelerated(optimizer: torch.optim.Optimizer) -> Any:
    accelerate = importlib.import_module("accelerate")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)


def fabric(optimizer: torch.optim.Optimizer) -> Any:
    wrappers = importlib.import_module("lightning_fabric.wrappers")
    strategies = importlib.import_module("lightning_fabric.strategies")
    return wrappers._FabricOptimizer(optimizer, strategies.SingleDeviceStrategy("cpu"))


def lightning(optimizer: torch.optim.Optimizer) -> Any:
    """What `LightningModule.optimizers()` returns; it steps by a closure."""
    pl = importlib.import_module("pytorch_lightning")
    module, trainer = pl.LightningModule(), _trainer(pl)
    module.trainer = trainer
    trainer.strategy.connect(module)
    wrapped = pl.core.optimizer.LightningOptimizer(optimizer)
    wrapped._strategy = trainer.strategy
    wrapped.keeps = module  # which the strategy refers to
    return wrapped


@functools.cache
def _trainer(pl: Any) -> Any:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation around any optimizer, by a perturbation of 0."""

    def __init__(self, base_optimizer: torch.optim.Optimizer) -> None:
        self.base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups
        self.state = base_optimizer.state
        self.defaults = base_optimizer.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base_optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            trained = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
            old = [p.clone() for p in trained]
            for p in trained:
                p.add_(torch.zeros_like(p))
            for p, before in zip(trained, old, strict=True):
                p.copy_(before)
        return self.base_optimizer.step(closure)


WRAPPERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "Accelerate": accelerated,
    "Fabric": fabric,
    "Lightning": lightning,
    "SAM": Sam,
}
