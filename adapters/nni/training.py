"""`dynamic(strategy)`: an NNI one-shot strategy that trains its supernet dynamically."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Hashable
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from nni.mutable.annotation import Constraint
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy, RandomOneShot

from nas_dynamic.adapters.nni.space import (
    activate,
    architecture_of,
    search_space,
    subnet_macs,
    subnet_parameters,
)
from nas_dynamic.architecture import Architecture, SearchSpace
from nas_dynamic.calr import CaLR
from nas_dynamic.complexity import bounds as bounds_of
from nas_dynamic.complexity import lookup
from nas_dynamic.momentum import MomentumSeparation, default_label
from nas_dynamic.training import DynamicTraining

__all__ = ["DynamicCallback", "dynamic"]


def dynamic(
    strategy: RandomOneShot,
    *,
    calr: bool = True,
    momentum: bool = True,
    gamma_max: float = 4.0,
    gamma_min: float | None = None,
    curve: str | Callable[[float], float] = "polynomial",
    warmup_steps: int = 0,
    total_steps: int | None = None,
    complexity: Literal["parameters", "macs"] | Callable[[Architecture], float] = "parameters",
    bounds: tuple[float, float] | None = None,
    group_by: str | Callable[[Architecture], Hashable] | None = None,
    idle: Literal["coast", "freeze"] = "coast",
    seed: int = 0,
) -> RandomOneShot:
    """Train the supernet of a one-shot strategy with CaLR and momentum separation.

    Returns a copy of the strategy, of the same class; model space, evaluator and experiment stay
    as they are. Each training step's subnet is drawn from a generator of its own, whose state
    goes into Lightning's checkpoints, so that a seed gives the same subnets on every rank and
    after a resume; with gradient accumulation one subnet serves the whole update. The subnets of
    validation come from another generator and never count. lr, γ and group of the updates are
    logged to Lightning's loggers, as `dynamic/lr`, `dynamic/gamma`, `dynamic/complexity` and
    `dynamic/group` (the number of the group, in the order of appearance).

    Args:
        strategy: a strategy that trains one sampled subnet a step: `RandomOneShot`.
        calr: set the lr by the complexity of the subnet.
        momentum: keep a momentum for each group of subnets.
        gamma_max: γ of the smallest subnet; see `CaLR`, as for the next three.
        gamma_min: γ of the largest subnet, 1/γ_max by default.
        curve: the decay, `"scheduler"` to bend that of the evaluator's own lr scheduler.
        warmup_steps: updates of linear warm-up.
        total_steps: updates in the whole training; the trainer's own number by default.
        complexity: `"parameters"` and `"macs"` are worked out from the model space (MACs at the
            shape of the first training batch); or a function of an architecture.
        bounds: least and greatest complexity of the space, found by search if not given.
        group_by: label or rule that groups subnets; see `MomentumSeparation`, and
            `default_label` for the label that is taken if none is given.
        idle: what parameters outside of the subnet do in an update; see `DynamicTraining`.
        seed: of the sampling.

    Raises:
        TypeError: the strategy has no sampled subnet.

    Example:
        >>> from nni.nas.strategy import RandomOneShot
        >>> strategy = dynamic(RandomOneShot())
    """
    configure = getattr(type(strategy), "configure_oneshot_module", None)
    if configure is not RandomOneShot.configure_oneshot_module:
        raise TypeError(
            "dynamic() needs a one-shot strategy that trains one sampled subnet a step, such as "
            f"RandomOneShot(); {type(strategy).__name__} does not"
        )
    options = {
        name: value for name, value in locals().items() if name not in ("strategy", "configure")
    }
    attached = copy.copy(strategy)
    # An attribute of the instance: the class, and so what NNI infers from it, stays the same.
    attached.mutate_evaluator = _MutateEvaluator(attached, options)  # type: ignore[method-assign]
    return attached


class _MutateEvaluator:
    """NNI's `mutate_evaluator`, and then the callback that attaches to the training."""

    def __init__(self, strategy: OneShotStrategy, options: dict[str, Any]) -> None:
        self.strategy = strategy
        self.options = options

    def __call__(self, evaluator: Lightning) -> Lightning:
        mutated = type(self.strategy).mutate_evaluator(self.strategy, evaluator)
        callback = DynamicCallback(mutated.module, **self.options)
        mutated.trainer.callbacks.append(callback)
        return mutated


class _Sampling:
    """`resample` of a random one-shot module, from generators of its own."""

    def __init__(self, module: RandomSamplingLightningModule, seed: int) -> None:
        self.module = module
        self.keep = False
        """Whether the next training sample is the last one again."""
        self.architecture: dict[str, Hashable] | None = None
        self._training, self._validation = (
            np.random.RandomState(np.random.SeedSequence([seed, stream]).generate_state(4))
            for stream in range(2)
        )

    def __call__(self) -> dict[str, Any]:
        training = self.module.trainer.training
        if training and self.keep and self.architecture is not None:
            activate(self.module, self.architecture)
            return dict(self.architecture)
        generator = self._training if training else self._validation
        sample = self.module._repeat_until_valid(lambda: self._draw(generator))
        if training:
            self.architecture = architecture_of(sample)
        return sample

    def _draw(self, generator: np.random.RandomState) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        for mutable in self.module.model.simplify().values():
            if not isinstance(mutable, Constraint):
                mutable.random(memo=sample, random_state=generator)
        activate(self.module, sample)
        return sample

    def state_dict(self) -> dict[str, Any]:
        return {
            "training": _plain(self._training.get_state(legacy=False)),
            "validation": _plain(self._validation.get_state(legacy=False)),
            "architecture": self.architecture,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._training.set_state(state["training"])
        self._validation.set_state(state["validation"])
        self.architecture = state["architecture"]


class DynamicCallback(pl.Callback):
    """Attaches dynamic training to the weight optimizer of an NNI one-shot module.

    `dynamic` adds it to the trainer; its arguments are those of `dynamic`.

    Attributes:
        training: the `DynamicTraining` of the current fit; None before it.
        space: the search space; None before the first fit.
    """

    def __init__(self, module: BaseOneShotLightningModule, **options: Any) -> None:
        self.module = module
        self.options = options
        self.training: DynamicTraining | None = None
        self.space: SearchSpace | None = None
        self._sampling = _Sampling(module, options["seed"])

    def state_dict(self) -> dict[str, Any]:
        """State of the sampling, as plain data."""
        return self._sampling.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the sampling of a checkpoint."""
        self._sampling.load_state_dict(state_dict)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: optimizers are built by now, and their states not yet restored."""
        if pl_module is not self.module:  # the trainer is fitting something else, later
            return
        if self.training is not None:
            self.training.detach()
        self.space = search_space(self.module.model)
        optimizer = _weight_optimizer(trainer)
        complexity = self._complexity(trainer)
        self.training = DynamicTraining(
            optimizer,
            architecture=lambda: self._sampling.architecture,
            calr=self._calr(trainer, complexity),
            momentum=self._momentum(optimizer, complexity),
            idle=self.options["idle"],
            space=self.space,
        )
        self.module.resample = self._sampling  # type: ignore[method-assign, assignment]

    def _complexity(self, trainer: pl.Trainer) -> Callable[[Architecture], float]:
        complexity = self.options["complexity"]
        assert self.space is not None
        if complexity == "parameters":
            return lookup(self.space, subnet_parameters(self.module.model))
        if complexity == "macs":
            return lookup(self.space, subnet_macs(self.module.model, _first_inputs(trainer)))
        if not callable(complexity):
            raise ValueError(
                "complexity must be 'parameters', 'macs' or a function of an architecture, "
                f"got {complexity!r}"
            )
        return complexity

    def _calr(
        self, trainer: pl.Trainer, complexity: Callable[[Architecture], float]
    ) -> CaLR | None:
        options = self.options
        if not options["calr"]:
            return None
        assert self.space is not None
        return CaLR(
            complexity,
            total_steps=options["total_steps"] or _total_steps(trainer),
            bounds=options["bounds"] or bounds_of(self.space, complexity),
            gamma_max=options["gamma_max"],
            gamma_min=options["gamma_min"],
            curve=options["curve"],
            warmup_steps=options["warmup_steps"],
        )

    def _momentum(
        self, optimizer: torch.optim.Optimizer, complexity: Callable[[Architecture], float]
    ) -> MomentumSeparation | None:
        if not self.options["momentum"]:
            return None
        if isinstance(optimizer, torch.optim.SGD) and not any(
            group["momentum"] for group in optimizer.param_groups
        ):
            warnings.warn(
                "SGD has no momentum here, so there is none to separate: NNI's Classification "
                "passes lr and weight decay only. Give it one with "
                "Classification(optimizer=functools.partial(SGD, momentum=0.9), …), or say "
                "dynamic(…, momentum=False)",
                UserWarning,
                stacklevel=2,
            )
            return None
        assert self.space is not None
        group_by = self.options["group_by"] or default_label(self.space, complexity)
        if isinstance(group_by, str) and group_by not in self.space.choices:
            raise ValueError(
                f"group_by={group_by!r} is no label of the space; "
                f"labels are {', '.join(map(repr, self.space.labels))}"
            )
        return MomentumSeparation(group_by)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """One subnet an update: micro-batches after the first keep it."""
        self._sampling.keep = batch_idx % trainer.accumulate_grad_batches != 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what the update used, as often as Lightning logs."""
        if self.training is None or self.training.last is None:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        update = self.training.last
        if (update.step + 1) % trainer.log_every_n_steps:
            return
        metrics = {"dynamic/lr": float(update.lr[0])}
        if update.gamma is not None and update.complexity is not None:
            metrics |= {"dynamic/gamma": update.gamma, "dynamic/complexity": update.complexity}
        if self.training.momentum is not None:
            metrics["dynamic/group"] = self.training.groups.index(update.group)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=update.step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module its own sampling back.

        The optimizer stays attached, so that a checkpoint saved after the fit is complete.
        """
        self.module.__dict__.pop("resample", None)


def _weight_optimizer(trainer: pl.Trainer) -> torch.optim.Optimizer:
    weight_optimizers = [
        optimizer
        for optimizer in trainer.optimizers
        if not getattr(optimizer, "is_arch_optimizer", False)
    ]
    if len(weight_optimizers) != 1:
        raise ValueError(
            f"the evaluator must have one optimizer for the weights, got {len(weight_optimizers)}"
        )
    return weight_optimizers[0]


def _total_steps(trainer: pl.Trainer) -> int:
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError(
            "the trainer has no end (max_epochs=-1), so the lr cannot decay towards it; "
            "give max_epochs or max_steps to the evaluator, or dynamic(…, total_steps=…)"
        )
    return int(steps)


def _first_inputs(trainer: pl.Trainer) -> torch.Tensor:
    trainer.fit_loop.setup_data()
    batch = next(iter(trainer.train_dataloader))
    inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
    if not torch.is_tensor(inputs):
        raise ValueError(
            "complexity='macs' needs batches of (inputs, targets) with a tensor of inputs; "
            "give a function of an architecture instead"
        )
    return inputs


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A generator's state without numpy arrays, so that it loads with `weights_only=True`."""
    key = state["state"]
    return state | {"state": {"key": key["key"].tolist(), "pos": key["pos"]}}
