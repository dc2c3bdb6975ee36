"""`attach(optimizer, supernet)`: dynamic training in a script of the shape of timm's train.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import torch
from timm.utils import unwrap_model
from torch import nn

from nas_dynamic.attach.ranks import RankAgreement, check_every, watch_ranks
from nas_dynamic.attach.training import DynamicTraining
from nas_dynamic.calr import CaLR, check_gamma_by
from nas_dynamic.complexity import gamma_reference
from nas_dynamic.grouping import default_label
from nas_dynamic.momentum import MomentumSeparation
from nas_dynamic.sampling import Sampler, UniformSampler
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Attached", "attach"]

CHECKPOINT_KEY = "dynamic_sampling"


def attach(
    optimizer: torch.optim.Optimizer,
    supernet: nn.Module,
    total_steps: int | None = None,
    *,
    calr: bool = True,
    momentum: bool = True,
    gamma_max: float = 4.0,
    gamma_min: float | None = None,
    curve: str | Callable[[float], float] | None = None,
    warmup_steps: int = 0,
    complexity: Literal["parameters", "macs"] | Callable[[Architecture], float] = "parameters",
    bounds: tuple[float, float] | None = None,
    gamma_by: Literal["rank", "complexity"] = "rank",
    group_by: str | Callable[[Architecture], Hashable] | None = None,
    idle: Literal["coast", "freeze"] = "coast",
    nonfinite: Literal["ignore", "raise", "skip"] = "ignore",
    sampler: Sampler | None = None,
    seed: int = 0,
    check_ranks_every: int | None = 100,
) -> Attached:
    """Train a supernet with CaLR and momentum separation, and draw its subnets.

    Goes after `create_optimizer_v2`, ahead of resuming, EMA and `DistributedDataParallel`. From
    then on the supernet draws a subnet at the first forward pass in training mode of every
    update, and keeps it until the optimizer has stepped, so that accumulated micro-batches train
    one subnet. A step that GradScaler skips is no update. In evaluation mode the supernet
    computes the subnet that was activated by `supernet.activate`, at first the one that it was
    made from: validation then scores that one, in the EMA model as well.

    The optimizer's `state_dict` holds the state of the sampling with that of the training, so
    that a checkpoint of timm's `CheckpointSaver` resumes exactly. All ranks draw the same
    subnets by the seed.

    Args:
        optimizer: of the supernet's weights.
        supernet: made by `fuse`, `mobile_supernet` or `elastic_vit`.
        total_steps: optimizer updates in the whole training, for the paper's polynomial decay;
            the script's own lr schedule has to be constant then. By default CaLR bends the lr
            schedule that the script has (`curve="scheduler"`), its warm-up apart; a constant lr
            has no decay to bend.
        calr: set the lr by the complexity of the subnet.
        momentum: keep a momentum for each group of subnets.
        gamma_max: γ of the smallest subnet; see `CaLR`, as for the next three.
        gamma_min: γ of the largest subnet, 1/γ_max by default.
        curve: the decay; `"polynomial"` with `total_steps`, `"scheduler"` without.
        warmup_steps: updates of linear warm-up.
        complexity: `"parameters"`; `"macs"` at the size of image that the model is made for; or
            a function of an architecture.
        bounds: least and greatest complexity of the space, for `gamma_by="complexity"`; found by
            search if not given.
        gamma_by: `"rank"`, of the complexity among subnets that `sampler` draws, which keeps the
            mean lr: see `population` of `CaLR`; or `"complexity"`, the paper's γ.
        group_by: label or rule that groups subnets; see `MomentumSeparation`, and
            `default_label` for the label that is taken if none is given.
        idle: what parameters outside of the subnet do in an update; see `DynamicTraining`, as for
            the next one.
        nonfinite: what a step does whose gradients have an inf or a NaN.
        sampler: draws one subnet an update; `UniformSampler` by default. To resume, give a new
            one of the same seed: with γ by rank, γ depends on what it draws first.
        seed: of the default sampler, the same on all ranks.
        check_ranks_every: where several processes train, the updates between two checks that they
            train the same subnets and have the same weights; see `RankAgreement`. None for none.

    Raises:
        TypeError: the model is no supernet.
        ValueError: an option is illegal, or the optimizer cannot be attached to: Lookahead, LBFGS.
    """
    supernet = unwrap_model(supernet)
    space = getattr(supernet, "space", None)
    if not isinstance(space, SearchSpace) or not hasattr(supernet, "_select"):
        raise TypeError(
            f"{type(supernet).__name__} is no supernet of this adapter; make one by fuse(), "
            "mobile_supernet() or elastic_vit()"
        )
    check_every(check_ranks_every)
    check_gamma_by(gamma_by, bounds)
    measure = _measure(supernet, complexity)
    curve = curve or ("scheduler" if total_steps is None else "polynomial")
    sampling = _Sampling(supernet, sampler or UniformSampler(space, seed))
    training = DynamicTraining(
        optimizer,
        architecture=sampling.trained,
        calr=CaLR(
            measure,
            total_steps=total_steps,
            **gamma_reference(space, measure, gamma_by, bounds, lambda: sampler),
            gamma_max=gamma_max,
            gamma_min=gamma_min,
            curve=curve,
            warmup_steps=warmup_steps,
        )
        if calr
        else None,
        momentum=MomentumSeparation(_checked_group(space, group_by, measure)) if momentum else None,
        idle=idle,
        nonfinite=nonfinite,
        space=space,
    )
    agreement = watch_ranks(training, check_ranks_every)
    sampling.start(training)
    return Attached(training, sampling, agreement)


class Attached:
    """Dynamic training that is attached.

    Attributes:
        training: the `DynamicTraining`; `training.last` tells what the last update used.
    """

    def __init__(
        self, training: DynamicTraining, sampling: _Sampling, agreement: RankAgreement | None
    ) -> None:
        self.training = training
        self._sampling = sampling
        self._agreement = agreement

    @property
    def drawn(self) -> Architecture | None:
        """The subnet of the current update; None ahead of the first."""
        return self._sampling.drawn

    def detach(self) -> None:
        """Stop: the supernet computes the activated subnet in training mode as well."""
        self.training.detach()
        if self._agreement is not None:
            self._agreement.detach()
        self._sampling.stop()


class _Sampling:
    """Draws the subnet of each update, in the supernet's forward pass."""

    def __init__(self, supernet: Any, sampler: Sampler) -> None:
        self.supernet = supernet
        self.sampler = sampler
        self.drawn: dict[str, Hashable] | None = None
        self._drawn_for: int | None = None
        self._training: DynamicTraining | None = None
        self._loading: dict[str, Any] | None = None
        self._handles: list[Any] = []

    def start(self, training: DynamicTraining) -> None:
        self._training = training

        # Functions, not methods: a copy of the supernet, such as an EMA model, copies methods
        # along with the optimizer behind them.
        def choose(module: Any, args: tuple[Any, ...]) -> None:
            if module is self.supernet and module.training:
                if self._drawn_for != self._turn:
                    self.drawn = self._sample()
                    self._drawn_for = self._turn
                module._select(self.drawn)
            else:
                module._select(module.architecture)

        def save(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict[CHECKPOINT_KEY] = {
                "sampler": self.sampler.state_dict(),
                "drawn": self.drawn,
                "drawn_for": self._drawn_for,
            }

        def check(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            if CHECKPOINT_KEY not in state_dict:
                raise ValueError(
                    "the checkpoint has no state of the sampling: it was written without attach(). "
                    "Load it into the optimizer ahead of attach()"
                )
            self._loading = state_dict[CHECKPOINT_KEY]

        def load(optimizer: torch.optim.Optimizer) -> None:
            assert self._loading is not None
            saved, self._loading = self._loading, None
            self.sampler.load_state_dict(saved["sampler"])
            self.drawn, self._drawn_for = saved["drawn"], saved["drawn_for"]

        def step_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            # For what calls parts of the supernet, such as `forward_features`.
            self.supernet._select(self.supernet.architecture)

        optimizer = training.optimizer
        self._handles = [
            optimizer.register_step_post_hook(step_back),
            self.supernet.register_forward_pre_hook(choose),
            optimizer.register_state_dict_post_hook(save),
            optimizer.register_load_state_dict_pre_hook(check),
            optimizer.register_load_state_dict_post_hook(load),
        ]

    @property
    def _turn(self) -> int:
        # A subnet whose gradients are not finite would fail again: the next one takes its turn.
        assert self._training is not None
        return self._training.updates + self._training.skipped

    def trained(self) -> dict[str, Hashable]:
        if self.drawn is None or self._drawn_for != self._turn:
            raise RuntimeError(
                "no subnet has been drawn for this update: its loss does not come from a call of "
                "the supernet in training mode. Call supernet.train(), and the supernet itself, "
                "not parts of it such as forward_features"
            )
        return self.drawn

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.supernet._select(self.supernet.architecture)

    def _sample(self) -> dict[str, Hashable]:
        drawn = self.sampler.sample()
        if not isinstance(drawn, Mapping):
            raise TypeError(
                f"{type(self.sampler).__name__} drew a {type(drawn).__name__}; attach() needs a "
                "sampler of one subnet an update, such as UniformSampler"
            )
        self.supernet.space.validate(drawn)
        return dict(drawn)


def _measure(supernet: Any, complexity: Any) -> Callable[[Architecture], float]:
    if complexity == "parameters":
        return supernet.subnet_parameters()
    if complexity == "macs":
        return supernet.subnet_macs()
    if not callable(complexity):
        raise ValueError(
            "complexity must be 'parameters', 'macs' or a function of an architecture, "
            f"got {complexity!r}"
        )
    return complexity


def _checked_group(
    space: SearchSpace,
    group_by: str | Callable[[Architecture], Hashable] | None,
    measure: Callable[[Architecture], float],
) -> str | Callable[[Architecture], Hashable]:
    if group_by is None:
        return default_label(space, measure)
    if isinstance(group_by, str) and group_by not in space.choices:
        raise ValueError(
            f"group_by={group_by!r} is no label of the space; "
            f"labels are {', '.join(map(repr, space.labels))}"
        )
    return group_by
