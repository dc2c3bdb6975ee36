"""The seam between dynamic training and a framework: what a host says, and one `attach`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.calr import CaLR
from nas_dynamic.complexity import Complexity, bounds, population
from nas_dynamic.grouping import check_rule, default_rule
from nas_dynamic.host.options import Options
from nas_dynamic.mean_lr import change_of_lr, mean_factor
from nas_dynamic.momentum import GroupBy, MomentumSeparation
from nas_dynamic.sampling import Sampler
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Host", "attach", "build"]


class Host(Protocol):
    """What an adapter says of its framework; all of it is known when training starts.

    Attributes:
        space: what is sampled from.
        optimizer: that updates the weights: the innermost one, not a wrapper.
        multi_subnet: whether an update takes several subnets, whose losses the host weights by
            `DynamicTraining.loss_weights`.
    """

    space: SearchSpace
    optimizer: torch.optim.Optimizer
    multi_subnet: bool = False

    def sampled(self) -> Architecture | Sequence[Architecture]:
        """Return the subnet, or the subnets, that this update's loss was computed with."""
        ...

    def complexity(self, measure: Literal["parameters", "macs"]) -> Complexity:
        """Return architecture → complexity, as a fast look-up: it is asked at every update."""
        ...

    def total_steps(self) -> int | None:
        """Return the number of updates of the whole training; None if it has or knows no end."""
        return None

    def has_scheduler(self) -> bool | None:
        """Return whether an lr scheduler sets the optimizer's lr; None if that is not known."""
        return None

    def constrain(self, group_by: GroupBy | None) -> None:
        """Sample the subnets of one update from one momentum group; called before `sampler`."""
        return

    def sampler(self) -> Sampler | None:
        """Return a new sampler that draws as the training does; None if it draws uniformly."""
        return None


def attach(host: Host, options: Options) -> DynamicTraining:
    """Attach dynamic training to the optimizer of a host, by its options.

    Raises:
        ValueError: an option does not suit the host, or the optimizer cannot be attached to.
    """
    calr, momentum, change = _build(host, options)
    with warnings.catch_warnings():
        if (
            not options.calr and options.momentum is False
        ):  # a static training, by two words of the user
            warnings.filterwarnings("ignore", "neither calr nor momentum")
        training = DynamicTraining(
            host.optimizer,
            architecture=host.sampled,
            calr=calr,
            momentum=momentum,
            idle=options.idle,
            space=host.space,
            nonfinite=options.nonfinite,
            check_ranks_every=options.check_ranks_every,
            check_sampled=options.check_sampled,
            extend=options.extend,
            seed=getattr(host, "seed", None),
        )
    if change is not None:
        logging.getLogger("nas_dynamic").info("%s", change)
    return training


def build(host: Host, options: Options) -> tuple[CaLR | None, MomentumSeparation | None]:
    """Return what `attach` attaches: the parts that the options ask for.

    Raises:
        ValueError: an option does not suit the host.
    """
    return _build(host, options)[:2]


def _build(
    host: Host, options: Options
) -> tuple[CaLR | None, MomentumSeparation | None, str | None]:
    """Return the parts, and what becomes of an lr that is constant without them."""
    constant = options.calr and host.has_scheduler() is False
    if constant and options.curve == "scheduler":
        raise ValueError(
            "curve='scheduler' bends the decay of an lr scheduler, and there is none here: the lr "
            "would stay as it is in the whole training. Return a scheduler with the optimizer "
            "(from configure_optimizers, in Lightning and NNI), or leave curve at 'polynomial'"
        )
    if options.calr and options.anneal == "loss" and not host.multi_subnet:
        raise ValueError(
            "anneal='loss' needs a host that weights the losses of several subnets an update, such "
            "as NNI's FairOneShot(); leave it at 'lr'"
        )
    measure = options.complexity
    complexity = measure if callable(measure) else host.complexity(measure)
    momentum = _momentum(host.space, options, complexity) if options.separates else None
    host.constrain(momentum.group_by if momentum else None)
    if not options.calr:
        return None, momentum, None
    calr, mean = _calr(host, options, complexity, constant)
    lrs = [float(group["lr"]) for group in host.optimizer.param_groups]
    return calr, momentum, change_of_lr(lrs, calr, mean) if constant else None


def _momentum(space: SearchSpace, options: Options, complexity: Complexity) -> MomentumSeparation:
    group_by = options.group_by
    if group_by is None:
        group_by = default_rule(space, complexity, options.max_groups)
    check_rule(space, group_by, options.max_groups)
    return MomentumSeparation(group_by, max_groups=options.max_groups)


def _calr(
    host: Host, options: Options, complexity: Complexity, constant: bool
) -> tuple[CaLR, float | None]:
    """Return CaLR, and its mean factor where the lr is constant without it and that is known."""
    steps = options.total_steps
    if steps is None and options.curve != "scheduler":  # which knows by itself when it ends
        steps = host.total_steps()
    by_rank = options.gamma_by == "rank"
    keep = options.keep_mean_lr
    if keep is None:  # the paper's γ stays as published
        keep = constant and by_rank
    sampled: list[float] = []
    if by_rank or keep:
        sampled = population(host.space, complexity, sampler=host.sampler())
    reference: dict[str, Any] = {"population": sampled}
    if not by_rank:
        reference = {"bounds": options.bounds or bounds(host.space, complexity)}
    calr = options.build_calr(complexity, steps, **reference)
    mean = mean_factor(calr, sampled) if keep or (constant and by_rank) else None
    if not keep or mean is None:
        return calr, mean
    start = round(1 / mean, 3)  # rounded, for it stands in checkpoints
    return options.build_calr(complexity, steps, **reference, start=start), start * mean
