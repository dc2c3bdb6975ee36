"""`dynamic(strategy)`: an NNI one-shot strategy that trains its supernet dynamically."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.strategy import ENAS, OneShotStrategy, Proxyless, RandomOneShot

from nas_dynamic.adapters.nni import enas
from nas_dynamic.adapters.nni.group_losses import GroupLosses
from nas_dynamic.adapters.nni.sampling import (
    RecordedSampling,
    Sampling,
    SamplingCallback,
    SeededSampling,
    begins_update,
)
from nas_dynamic.adapters.nni.space import complexity_of
from nas_dynamic.attach.ranks import RankAgreement, check_every, watch_ranks
from nas_dynamic.attach.training import DynamicTraining
from nas_dynamic.attach.update_rule import Update
from nas_dynamic.calr import CaLR, check_gamma_by
from nas_dynamic.complexity import gamma_reference
from nas_dynamic.grouping import default_label
from nas_dynamic.momentum import MomentumSeparation
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["DynamicCallback", "dynamic"]

Strategy = TypeVar("Strategy", bound=OneShotStrategy)


def dynamic(
    strategy: Strategy,
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
    gamma_by: Literal["rank", "complexity"] = "rank",
    group_by: str | Callable[[Architecture], Hashable] | None = None,
    anneal: Literal["lr", "loss"] = "lr",
    idle: Literal["coast", "freeze"] = "coast",
    nonfinite: Literal["ignore", "raise", "skip"] = "ignore",
    seed: int | None = None,
    check_ranks_every: int | None = 100,
) -> Strategy:
    """Train the supernet of a one-shot strategy with CaLR and momentum separation.

    Returns a copy of the strategy, of the same class; model space, evaluator and experiment stay
    as they are. Subnets are drawn from a generator of its own, whose state goes into Lightning's
    checkpoints, so that a seed gives the same subnets on every rank and after a resume; with
    gradient accumulation the same subnets serve the whole update. The subnets of validation come
    from another generator and never count. ENAS and Proxyless sample by their own policy, which
    has neither seed nor state here; their architecture steps are left alone. What the updates used
    goes to the loggers of the evaluator's trainer, see `DynamicCallback`.

    Args:
        strategy: one that trains sampled subnets: `RandomOneShot`, `ENAS` and `Proxyless` of
            NNI, `FairOneShot`, `SandwichOneShot` and `FewShotOneShot`.
        calr: set the lr by the complexity of the subnet.
        momentum: keep a momentum for each group of subnets.
        gamma_max: γ of the smallest subnet; see `CaLR`, as for the next three.
        gamma_min: γ of the largest subnet, 1/γ_max by default.
        curve: the decay, `"scheduler"` to bend that of the evaluator's own lr scheduler.
        warmup_steps: updates of linear warm-up.
        total_steps: updates of the weights in the whole training; the trainer's own number by
            default.
        complexity: `"parameters"` and `"macs"` are worked out from the model space (MACs at the
            shape of the first training batch); or a function of an architecture.
        bounds: least and greatest complexity of the space, for `gamma_by="complexity"`; found by
            search if not given.
        gamma_by: `"rank"`, of the complexity among subnets that the strategy draws (uniformly
            drawn ones where it learns a policy), which keeps the mean lr: see `population` of
            `CaLR`; or `"complexity"`, the paper's γ.
        group_by: label or rule that groups subnets; see `MomentumSeparation`, and
            `default_label` for the label that is taken if none is given. The subnets of one
            update are sampled from one group, which takes a label.
        anneal: what the decay applies to where an update takes several subnets; see `CaLR`.
        idle: what parameters outside of the subnet do in an update; see `DynamicTraining`, as for
            the next one.
        nonfinite: what a step does whose gradients have an inf or a NaN.
        seed: of the sampling; by default the strategy's own, or 0.
        check_ranks_every: where several processes train, the updates between two checks that they
            train the same subnets and have the same weights; see `RankAgreement`. None for none.

    Raises:
        TypeError: the strategy has no sampled subnet, as DARTS.

    Example:
        >>> from nni.nas.strategy import RandomOneShot
        >>> strategy = dynamic(RandomOneShot())
    """
    sampling = sampling_factory(strategy)
    check_every(check_ranks_every)
    check_gamma_by(gamma_by, bounds)
    options = {
        name: value for name, value in locals().items() if name not in ("strategy", "sampling")
    }
    attached = copy.copy(strategy)
    if seed is not None and hasattr(attached, "seed"):
        attached.seed = seed
    if isinstance(strategy, ENAS):
        attached.train_dataloader = enas.train_dataloader  # type: ignore[method-assign]
    # An attribute of the instance: the class, and so what NNI infers from it, stays the same.
    attached.mutate_evaluator = _MutateEvaluator(attached, options)  # type: ignore[method-assign]
    return attached


class _MutateEvaluator:
    """NNI's `mutate_evaluator`, and then the callbacks that attach to the training."""

    def __init__(self, strategy: OneShotStrategy, options: dict[str, Any]) -> None:
        self.strategy = strategy
        self.options = options

    def __call__(self, evaluator: Lightning) -> Lightning:
        mutated = type(self.strategy).mutate_evaluator(self.strategy, evaluator)
        options = dict(self.options)
        sampling = sampling_factory(self.strategy)(mutated.module, options.pop("seed") or 0)
        callbacks = mutated.trainer.callbacks
        if not any(isinstance(c, SamplingCallback) and c.sampling is sampling for c in callbacks):
            callbacks.append(SamplingCallback(sampling))
        callbacks.append(DynamicCallback(sampling, **options))
        return mutated


def sampling_factory(
    strategy: OneShotStrategy,
) -> Callable[[BaseOneShotLightningModule, int], Sampling]:
    """How the module of a strategy samples: (module, seed) → its sampling.

    A strategy says so itself by a method `sampling_of(module, seed)`; NNI's own have none.

    Raises:
        TypeError: an update of this strategy has no sampled subnet.
    """
    own = getattr(strategy, "sampling_of", None)
    if own is not None:
        return own
    if isinstance(strategy, ENAS):
        return lambda module, seed: enas.EnasSampling(module)
    if isinstance(strategy, Proxyless):
        return lambda module, seed: RecordedSampling(module)
    configure = getattr(type(strategy), "configure_oneshot_module", None)
    if configure is RandomOneShot.configure_oneshot_module:
        return SeededSampling
    raise TypeError(
        "dynamic() needs a one-shot strategy that trains sampled subnets, such as "
        f"RandomOneShot(); {type(strategy).__name__} does not"
    )


class DynamicCallback(pl.Callback):
    """Attaches dynamic training to the weight optimizer of an NNI one-shot module.

    `dynamic` adds it to the trainer; its arguments are those of `dynamic`. At every
    `log_every_n_steps`-th update the trainer's loggers get, at the number of the update:

    - `dynamic/lr`: what the update used, with CaLR's factor; of the first param group.
    - `dynamic/gamma`, `dynamic/complexity`: the means over the subnets of the update.
    - `dynamic/group`: the number of its momentum group, in the order of appearance.
    - `dynamic/loss/<group>`: the mean training loss of the updates of each momentum group since
      the last logging, where it had any. Losses are taken before CaLR weighs them.

    Losses are added up on their device, and read when they are logged. Without a logger nothing
    is done.

    Attributes:
        training: the `DynamicTraining` of the current fit; None before it.
        space: the search space; None before the first fit.
    """

    def __init__(self, sampling: Sampling, **options: Any) -> None:
        self.sampling = sampling
        self.options = options
        self.training: DynamicTraining | None = None
        self.space: SearchSpace | None = None
        self._agreement: RankAgreement | None = None
        self._seen: Update | None = None
        self._losses = GroupLosses()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: optimizers are built by now, and their states not yet restored."""
        module = self.sampling.module
        if pl_module is not module:  # the trainer is fitting something else, later
            return
        if self.training is not None:
            self.training.detach()
        if self._agreement is not None:
            self._agreement.detach()
        self._losses = GroupLosses()
        self.space = self.sampling.space
        optimizer = _weight_optimizer(trainer)
        complexity = complexity_of(self.options["complexity"], module.model, self.space, trainer)
        momentum = build_momentum(self.options, self.space, complexity, optimizer)
        self.sampling.constrain(momentum.group_by if momentum else None)
        self.training = DynamicTraining(
            optimizer,
            architecture=lambda: self.sampling.architectures,
            calr=self._calr(trainer, complexity),
            momentum=momentum,
            idle=self.options["idle"],
            nonfinite=self.options["nonfinite"],
            space=self.space,
        )
        self._agreement = watch_ranks(self.training, self.options["check_ranks_every"])
        self.sampling.weigh(self.training)

    def _calr(
        self, trainer: pl.Trainer, complexity: Callable[[Architecture], float]
    ) -> CaLR | None:
        options = self.options
        if not options["calr"]:
            return None
        if options["anneal"] == "loss" and not self.sampling.several:
            raise ValueError(
                "anneal='loss' needs a strategy that weighs the losses of several subnets, such as "
                "FairOneShot(); leave it at 'lr'"
            )
        assert self.space is not None
        total_steps = options["total_steps"] or self._total_steps(trainer)
        reference = gamma_reference(
            self.space,
            complexity,
            options["gamma_by"],
            options["bounds"],
            self.sampling.sampler,
        )
        return build_calr(options, complexity, total_steps, reference)

    def _total_steps(self, trainer: pl.Trainer) -> int | None:
        if self.options["curve"] == "scheduler":  # which knows by itself when it ends
            return None
        steps = self.sampling.updates(trainer)
        if not math.isfinite(steps):
            raise ValueError(
                "the trainer has no end (max_epochs=-1), so the lr cannot decay towards it; "
                "give max_epochs or max_steps to the evaluator, dynamic(…, total_steps=…), "
                "or an lr scheduler and dynamic(…, curve='scheduler')"
            )
        return int(steps)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what the update used, as often as Lightning logs."""
        training = self.training
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if training is None or not trainer.loggers or not every:
            return
        separate = training.momentum is not None
        if separate:
            if begins_update(trainer):
                self._losses.begin()
            self._losses.add(self.sampling.loss(outputs))
        update = training.last
        # The batch may have been a micro-batch, or one that trains no weights.
        if update is None or update is self._seen:
            return
        self._seen = update
        if separate:
            self._losses.end(update.group)
        if (update.step + 1) % every:
            return
        metrics = {"dynamic/lr": float(update.lr[0])}
        if training.calr is not None:
            for name in ("gamma", "complexity"):
                values = [getattr(subnet, name) for subnet in update.subnets]
                metrics[f"dynamic/{name}"] = sum(values) / len(values)
        if separate:
            metrics["dynamic/group"] = training.groups.index(update.group)
            for group, loss in self._losses.means().items():
                metrics[f"dynamic/loss/{group}"] = loss
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=update.step)


def build_calr(
    options: Mapping[str, Any],
    complexity: Callable[[Architecture], float],
    total_steps: int | None,
    reference: Mapping[str, Any],
) -> CaLR:
    """CaLR by the options of `dynamic`, with a `gamma_reference`.

    Raises:
        ValueError: names the option and what it may be.
    """
    return CaLR(
        complexity,
        total_steps=total_steps,
        **reference,
        gamma_max=options["gamma_max"],
        gamma_min=options["gamma_min"],
        curve=options["curve"],
        warmup_steps=options["warmup_steps"],
        anneal=options["anneal"],
    )


def build_momentum(
    options: Mapping[str, Any],
    space: SearchSpace,
    complexity: Callable[[Architecture], float],
    optimizer: torch.optim.Optimizer,
) -> MomentumSeparation | None:
    """Momentum separation by the options of `dynamic`; None where there is nothing to separate.

    Raises:
        ValueError: the space has no such label.
    """
    if not options["momentum"]:
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
    group_by = options["group_by"] or default_label(space, complexity)
    if isinstance(group_by, str) and group_by not in space.choices:
        raise ValueError(
            f"group_by={group_by!r} is no label of the space; "
            f"labels are {', '.join(map(repr, space.labels))}"
        )
    return MomentumSeparation(group_by)


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
