"""`dynamic(strategy)`: an NNI one-shot strategy that trains its supernet dynamically."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.strategy import ENAS, OneShotStrategy, Proxyless, RandomOneShot

from nas_dynamic.adapters._lightning_steps import check_plan, has_scheduler, warn_if_unfinished
from nas_dynamic.adapters.lightning import log_start, log_update
from nas_dynamic.adapters.nni import policies
from nas_dynamic.adapters.nni._locks import lock_problem
from nas_dynamic.adapters.nni.complexity import complexity_of
from nas_dynamic.adapters.nni.random_one_shot import RandomOneShotSampling
from nas_dynamic.adapters.nni.resume import Resumable, StrategyState
from nas_dynamic.adapters.nni.sampling import Sampling, begins_update
from nas_dynamic.attach import DynamicTraining
from nas_dynamic.complexity import Complexity
from nas_dynamic.host import Host, Options, attach, takes_options
from nas_dynamic.host.update_log import UpdateLog
from nas_dynamic.momentum import GroupBy
from nas_dynamic.sampling import Sampler
from nas_dynamic.space import Architecture

__all__ = ["DynamicCallback", "NniHost", "dynamic"]

Strategy = TypeVar("Strategy", bound=OneShotStrategy)
SamplingFactory = Callable[[BaseOneShotLightningModule, int], Sampling]
"""(one-shot module, seed) → its sampling."""


@takes_options
def dynamic(strategy: Strategy, *, seed: int | None = None, **options: Any) -> Strategy:
    """Train the supernet of a one-shot strategy with CaLR, and momentum separation if asked for.

    Returns a copy of the strategy, of the same class; model space, evaluator and experiment stay
    as they are. Subnets are drawn from a generator of its own, whose state goes into Lightning's
    checkpoints, so that a seed gives the same subnets on every rank and after a resume; with
    gradient accumulation the same subnets serve the whole update. The subnets of validation come
    from another generator and never count. ENAS and Proxyless sample by their own policy, which
    has neither seed nor state here; their architecture steps are left as they are. What the
    updates used goes to the loggers of the evaluator's trainer, see `DynamicCallback`.

    Args:
        strategy: one that trains sampled subnets: `RandomOneShot`, `ENAS` and `Proxyless` of
            NNI, `FairOneShot`, `SandwichOneShot` and `FewShotOneShot`.
        seed: of the sampling; by default the strategy's own, or 0.
        options: see `nas_dynamic.host.Options`. MACs are counted at the shape of the first training
            batch. By rank, γ goes by the subnets that the strategy draws (uniformly drawn ones
            where it learns a policy). With momentum separation the subnets of one update are
            sampled from one group, which takes a label for `group_by`.

    Raises:
        TypeError: the strategy has no sampled subnet, as DARTS; or there is no such option.
        ValueError: an option is not what it may be.

    Example:
        >>> from nni.nas.strategy import RandomOneShot
        >>> strategy = dynamic(RandomOneShot())
    """
    sampling_factory(strategy)
    given = Options.of(**options)
    if (problem := lock_problem()) is not None:
        warnings.warn(problem, UserWarning, stacklevel=2)
    attached = copy.copy(strategy)
    if seed is not None and hasattr(attached, "seed"):
        attached.seed = seed
    if isinstance(strategy, ENAS):
        attached.train_dataloader = policies.train_dataloader
    # Attributes of the instance: the class, and so what NNI infers from it, stays the same.
    attached.mutate_evaluator = _MutateEvaluator(attached, given, seed or 0)
    state = StrategyState(attached)
    attached.state_dict, attached.load_state_dict = state.save, state.load
    return attached


@dataclass(frozen=True, eq=False)
class _MutateEvaluator:
    """NNI's `mutate_evaluator`, and then the callbacks that attach to the training."""

    strategy: OneShotStrategy
    options: Options
    seed: int

    def __call__(self, evaluator: Lightning) -> Lightning:
        mutated = type(self.strategy).mutate_evaluator(self.strategy, evaluator)
        sampling = sampling_factory(self.strategy)(mutated.module, self.seed)
        callbacks = mutated.trainer.callbacks
        if sampling not in callbacks:
            callbacks.append(sampling)
        callbacks += [DynamicCallback(sampling, self.options), Resumable()]
        return mutated


def sampling_factory(strategy: OneShotStrategy) -> SamplingFactory:
    """Return what makes the sampling of a module of a strategy.

    A strategy has it itself as a method `sampling_of(module, seed)`; NNI's own have none.

    Raises:
        TypeError: an update of this strategy has no sampled subnet.
    """
    own: SamplingFactory | None = getattr(strategy, "sampling_of", None)
    if own is not None:
        return own
    if isinstance(strategy, ENAS):
        return lambda module, seed: policies.EnasSampling(module)
    if isinstance(strategy, Proxyless):
        return lambda module, seed: policies.PolicySampling(module)
    configure = getattr(type(strategy), "configure_oneshot_module", None)
    if configure is RandomOneShot.configure_oneshot_module:
        return RandomOneShotSampling
    raise TypeError(
        "dynamic() needs a one-shot strategy that trains sampled subnets, such as "
        f"RandomOneShot(); {type(strategy).__name__} does not"
    )


class NniHost(Host):
    """What dynamic training has to know of a one-shot training that begins."""

    def __init__(self, sampling: Sampling, trainer: pl.Trainer) -> None:
        self.sampling = sampling
        self.trainer = trainer
        self.space = sampling.space
        self.optimizer = _weight_optimizer(trainer)
        self.multi_subnet = sampling.multi_subnet

    def sampled(self) -> Sequence[Architecture]:
        """Return the subnets of the update at hand."""
        return self.sampling.architectures

    def complexity(self, measure: Literal["parameters", "macs"]) -> Complexity:
        """Return a look-up in the supernet; MACs at the shape of the first training batch."""
        return complexity_of(measure, self.sampling.module.model, self.space, self.trainer)

    def total_steps(self) -> int:
        """Return the number of updates of the weights that the trainer will make."""
        return max(self.sampling.planned_updates(self.trainer), 1)

    def has_scheduler(self) -> bool:
        """Return whether the evaluator's module has an lr scheduler."""
        return has_scheduler(self.trainer, self.optimizer)

    def constrain(self, group_by: GroupBy | None) -> None:
        """Sample the subnets of one update from one momentum group."""
        self.sampling.constrain(group_by)

    def sampler(self) -> Sampler | None:
        """Return a sampler that draws as the strategy does."""
        return self.sampling.sampler()


def _weight_optimizer(trainer: pl.Trainer) -> torch.optim.Optimizer:
    """Return the optimizer that is not the one of a strategy's policy."""
    found = [o for o in trainer.optimizers if not getattr(o, "is_arch_optimizer", False)]
    if len(found) != 1:
        raise ValueError(f"the evaluator must have one optimizer for the weights, got {len(found)}")
    return found[0]


class DynamicCallback(pl.Callback):
    """Attaches dynamic training to the weight optimizer of an NNI one-shot module.

    `dynamic` adds it to the trainer. At every `log_every_n_steps`-th update the trainer's loggers
    get what `UpdateLog` says of it, at the number of the update. Without a
    logger nothing is done.

    Attributes:
        training: the `DynamicTraining` of the current fit; None before it.
    """

    def __init__(self, sampling: Sampling, options: Options) -> None:
        self.sampling = sampling
        self.options = options
        self.training: DynamicTraining | None = None
        self._log: UpdateLog | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: optimizers are built by now, and their states not yet restored."""
        if pl_module is not self.sampling.module:  # the trainer is fitting something else, later
            return
        if self.training is not None:
            self.training.detach()
        host = NniHost(self.sampling, trainer)
        self.training = attach(host, _checked_momentum(self.options, host.optimizer))
        self.sampling.loss_weights = self.training.loss_weights
        self._log = UpdateLog(self.training)
        log_start(self._log, trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check loaders that were made anew: they may be longer than T was read from."""
        left = functools.partial(self.sampling.planned_updates, trainer, from_here=True)
        check_plan(trainer, self.training, self.options, left)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where the training has ended before T, as by early stopping."""
        if self.training is not None:
            warn_if_unfinished(trainer, self.training)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what the update used, as often as Lightning logs."""
        if self._log is None:
            return
        if begins_update(trainer):
            self._log.begin()
        log_update(self._log, trainer, outputs)


def _checked_momentum(options: Options, optimizer: torch.optim.Optimizer) -> Options:
    """Return the options; where SGD has no momentum to separate, warn, and leave that out."""
    if not (options.separates and isinstance(optimizer, torch.optim.SGD)):
        return options
    if any(group["momentum"] for group in optimizer.param_groups):
        return options
    warnings.warn(
        "SGD has no momentum here, so there is none to separate: NNI's Classification "
        "passes lr and weight decay only. Give it one with "
        "Classification(optimizer=functools.partial(SGD, momentum=0.9), …), or say "
        "dynamic(…, momentum=False)",
        UserWarning,
        stacklevel=2,
    )
    return replace(options, momentum=False)
