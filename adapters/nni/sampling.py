"""Which subnets the updates of a one-shot module train, and how a checkpoint keeps that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule

from nas_dynamic.adapters._lightning_steps import planned_updates
from nas_dynamic.adapters.nni.space import activate, sample_of, search_space
from nas_dynamic.momentum import GroupBy
from nas_dynamic.sampling import Sampler
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Sampling", "SeededSampling", "accept_of", "begins_update"]


def _ones(architectures: Sequence[Architecture]) -> Sequence[float]:
    return [1.0] * len(architectures)


class Sampling(pl.Callback):
    """The subnets that a one-shot module trains, and what dynamic training has to know of them.

    A callback of the module's trainer: during a fit it stands in for the module's `resample`, and
    its state is in Lightning's checkpoints. The defaults are those of a module that draws one
    subnet an update.

    Args:
        module: the one-shot module.

    Attributes:
        architectures: the subnets of the update at hand.
        loss_weights: what the losses of an update's subnets are multiplied by; that of a single
            one has the weight 1.
    """

    multi_subnet = False
    """Whether an update takes several subnets, whose losses are weighted."""

    def __init__(self, module: BaseOneShotLightningModule) -> None:
        self.module = module
        self.architectures: Sequence[Architecture] = ()
        self.loss_weights: Callable[[Sequence[Architecture]], Sequence[float]] = _ones

    @property
    def space(self) -> SearchSpace:
        """What is sampled from."""
        return search_space(self.module.model)

    def resample(self) -> Sample:
        """Activate the subnet of the batch at hand, and return NNI's sample of it."""
        raise NotImplementedError

    def sampler(self) -> Sampler | None:
        """Return one that draws as the training does from its start; None if that is uniformly."""
        return None

    def planned_updates(self, trainer: pl.Trainer, *, from_here: bool = False) -> int:
        """Return the number of updates of the weights; see `planned_updates` of Lightning.

        Raises:
            ValueError: no end is known before.
        """
        return planned_updates(trainer, from_here=from_here)

    def constrain(self, group_by: GroupBy | None) -> None:
        """Sample the subnets of an update from one momentum group; one always is of one."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the module's sampling."""
        if pl_module is self.module:
            vars(self.module)["resample"] = self.resample

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module its own sampling back."""
        vars(self.module).pop("resample", None)


class SeededSampling(Sampling):
    """Subnets from samplers: one for the training, another one for validation.

    Seeds decide both sequences, and checkpoints keep their state. All micro-batches of an update
    have the subnets of its first one. Subnets of validation never count.
    """

    def __init__(self, module: RandomSamplingLightningModule) -> None:
        super().__init__(module)
        self._group_by: str | None = None
        self._samplers: dict[str, Sampler] = {}
        self._loaded: dict[str, Any] = {}
        self._encoded: list[list[int]] = []  # architectures of a checkpoint

    def training_sampler(self, group_by: str | None) -> Sampler:
        """Return a new sampler of the training, whose subnets of an update agree in a label.

        Called in a fit, when the model and the trainer are there.
        """
        raise NotImplementedError

    def validation_sampler(self) -> Sampler:
        """Return a new sampler of the subnets to validate, one at a time."""
        raise NotImplementedError

    def sampler(self) -> Sampler | None:
        """Return a new sampler of the training, under the constraint that it has."""
        return self.training_sampler(self._group_by)

    def constrain(self, group_by: GroupBy | None) -> None:
        """Have the subnets of an update agree in a label.

        Raises:
            ValueError: the groups are those of a function.
        """
        if not self.multi_subnet:
            return
        if group_by is not None and not isinstance(group_by, str):
            raise ValueError(
                "group_by is a function, and the subnets of an update must be sampled from one "
                "momentum group, which only a label can be asked for; give the label of a choice, "
                "or dynamic(…, momentum=False)"
            )
        if group_by != self._group_by:
            self._group_by = group_by
            self._samplers.pop("training", None)

    def resample(self) -> Sample:
        """Activate the subnet of the update, or one to validate."""
        (architecture,) = self.draw() if self.module.trainer.training else self._draw("validation")
        activate(self.module.model, architecture)
        return sample_of(architecture, self.module.model)

    def draw(self) -> Sequence[Architecture]:
        """Return the subnets of the update: those of its first micro-batch."""
        if self._encoded:
            self.architectures = [self.space.decode(numbers) for numbers in self._encoded]
            self._encoded = []
        if begins_update(self.module.trainer) or not self.architectures:
            self.architectures = self._draw("training")
        return self.architectures

    def _draw(self, stage: str) -> Sequence[Architecture]:
        sampler = self._samplers.get(stage)
        if sampler is None:
            training = stage == "training"
            sampler = (
                self.training_sampler(self._group_by) if training else self.validation_sampler()
            )
            if stage in self._loaded:
                sampler.load_state_dict(self._loaded.pop(stage))
            self._samplers[stage] = sampler
        drawn = sampler.sample()
        return [drawn] if isinstance(drawn, Mapping) else drawn

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the module's sampling, of the model that it has now."""
        super().on_fit_start(trainer, pl_module)
        if pl_module is self.module:
            self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the samplers, and the subnets of the update at hand."""
        samplers = {stage: sampler.state_dict() for stage, sampler in self._samplers.items()}
        # By their numbers: candidates may be classes or functions, which no checkpoint loads.
        # Those of another supernet, which the module had before, are of no use.
        known = [a for a in self.architectures if a in self.space]
        numbers = [self.space.encode(a).tolist() for a in known] or self._encoded
        return self._loaded | samplers | {"architectures": numbers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        # Callbacks are restored before `on_fit_start`, where the samplers cannot be built yet.
        self._samplers = {}
        self._loaded = {k: state for k, state in state_dict.items() if k != "architectures"}
        self.architectures, self._encoded = (), state_dict["architectures"]


def accept_of(module: RandomSamplingLightningModule) -> Callable[[Architecture], bool] | None:
    """Return the filter of a module's strategy, of an architecture."""
    valid = module.filter
    return valid and (lambda architecture: valid(sample_of(architecture, module.model)))


def begins_update(trainer: pl.Trainer) -> bool:
    """Return whether the batch at hand is the first of an update: gradients may accumulate."""
    return trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0
