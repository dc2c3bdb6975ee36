"""Which subnets an update of a one-shot training takes, and how a checkpoint keeps that."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from nni.mutable.annotation import Constraint
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule

from nas_dynamic.adapters.nni.space import activate, architecture_of, sample_of, search_space
from nas_dynamic.attach.training import DynamicTraining
from nas_dynamic.sampling import Sampler, UniformSampler
from nas_dynamic.space import Architecture, SearchSpace

__all__ = [
    "RecordedSampling",
    "SamplerSampling",
    "Sampling",
    "SamplingCallback",
    "SeededSampling",
    "accept_of",
]

GroupBy = str | Callable[[Architecture], Hashable] | None


class Sampling:
    """What dynamic training has to know of, and do to, the sampling of a one-shot module.

    The defaults are those of a module that draws one subnet an update.

    Args:
        module: the one-shot module.
    """

    several = False
    """Whether an update takes several subnets, whose losses are weighed."""

    def __init__(self, module: BaseOneShotLightningModule) -> None:
        self.module = module
        self.architectures: Sequence[Architecture] = ()
        """The subnets of the update at hand."""

    @property
    def space(self) -> SearchSpace:
        """What is sampled from."""
        return search_space(self.module.model)

    def sampler(self) -> Sampler | None:
        """A sampler that draws as the training does from its start; None if it draws uniformly."""
        return None

    def updates(self, trainer: pl.Trainer) -> float:
        """Number of updates of the weights in the whole training; inf if it has no end."""
        return trainer.estimated_stepping_batches

    def constrain(self, group_by: GroupBy) -> None:
        """Sample the subnets of an update from one momentum group; one always is of one."""

    def weigh(self, training: DynamicTraining) -> None:
        """Weigh the losses of an update's subnets by this training; that of one has weight 1."""

    def loss(self, outputs: Any) -> torch.Tensor | None:
        """The loss of a batch, before it is weighed, from what Lightning says of the batch.

        None where there is no loss, as in a step that was skipped.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        # Lightning divides it by the number of batches of an update.
        return None if loss is None else loss * self.module.trainer.accumulate_grad_batches

    def start(self) -> None:
        """A fit begins."""

    def stop(self) -> None:
        """The fit has ended."""

    def state_dict(self) -> dict[str, Any]:
        """What continues the sequence of subnets, as plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


class SamplingCallback(pl.Callback):
    """Keeps a module's sampling in Lightning's checkpoints, and starts and stops it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the sampling."""
        if pl_module is self.sampling.module:
            self.sampling.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module its own sampling back."""
        self.sampling.stop()

    def state_dict(self) -> dict[str, Any]:
        """State of the sampling, as plain data."""
        return self.sampling.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the sampling of a checkpoint."""
        self.sampling.load_state_dict(state_dict)


class _Replaced(Sampling):
    """Stands in for the module's `resample` during a fit."""

    def start(self) -> None:
        """Replace."""
        self.module.resample = self.resample  # type: ignore[method-assign, assignment]

    def stop(self) -> None:
        """Give the module its own back."""
        self.module.__dict__.pop("resample", None)

    def resample(self) -> dict[str, Any]:
        """Activate a subnet; NNI's sample of it."""
        raise NotImplementedError


class SeededSampling(_Replaced):
    """`resample` of `RandomOneShot`, from generators of its own.

    NNI's cannot be seeded. The subnets of validation come from another generator than those of
    training, and the micro-batches of one update have the same subnet.
    """

    module: RandomSamplingLightningModule

    def __init__(self, module: RandomSamplingLightningModule, seed: int) -> None:
        super().__init__(module)
        self._training, self._validation = (
            np.random.RandomState(np.random.SeedSequence([seed, stream]).generate_state(4))
            for stream in range(2)
        )

    def sampler(self) -> Sampler | None:
        """Uniform, within the strategy's filter."""
        accept = accept_of(self.module)
        return None if accept is None else UniformSampler(self.space, accept=accept)

    def resample(self) -> dict[str, Any]:
        """Activate the subnet of the update, or one to validate."""
        trainer = self.module.trainer
        if not trainer.training:
            return self._valid(self._validation)
        if begins_update(trainer) or not self.architectures:
            self.architectures = [architecture_of(self._valid(self._training))]
        activate(self.module.model, self.architectures[0])
        return dict(self.architectures[0])

    def _valid(self, generator: np.random.RandomState) -> dict[str, Any]:
        return self.module._repeat_until_valid(lambda: self._draw(generator))

    def _draw(self, generator: np.random.RandomState) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        for mutable in self.module.model.simplify().values():
            if not isinstance(mutable, Constraint):
                mutable.random(memo=sample, random_state=generator)
        activate(self.module.model, sample)
        return sample

    def state_dict(self) -> dict[str, Any]:
        """State of both generators, and the subnet of the update at hand."""
        return {
            "training": _plain(self._training.get_state(legacy=False)),
            "validation": _plain(self._validation.get_state(legacy=False)),
            "architectures": list(self.architectures),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._training.set_state(state["training"])
        self._validation.set_state(state["validation"])
        self.architectures = state["architectures"]


class RecordedSampling(_Replaced):
    """What a module's own policy samples, recorded: `Proxyless`.

    Seeds and state are the policy's. The module's last sample ahead of an update of the weights
    is the subnet of that update, since these modules sample again for each update.
    """

    def resample(self) -> dict[str, Any]:
        """Let the policy sample."""
        sample = type(self.module).resample(self.module)
        self.architectures = [architecture_of(sample)]
        return sample

    def updates(self, trainer: pl.Trainer) -> float:
        """Number of updates of the weights, without those of the architecture.

        Raises:
            ValueError: the training ends by `max_steps`, which counts both.
        """
        if trainer.max_steps != -1:
            raise ValueError(
                f"max_steps={trainer.max_steps} counts the steps of the architecture's optimizer "
                "as well; give max_epochs to the evaluator, or dynamic(…, total_steps=…), the "
                "number of updates of the weights"
            )
        if trainer.max_epochs == -1:
            return math.inf
        trainer.fit_loop.setup_data()
        return self.weight_batches(trainer) * (trainer.max_epochs or 0)

    def weight_batches(self, trainer: pl.Trainer) -> float:
        """Number of batches of an epoch that update the weights."""
        return trainer.num_training_batches


class SamplerSampling(Sampling):
    """The subnets of each update from a sampler of the core.

    Args:
        module: the one-shot module.
        build: group_by → sampler. Called ahead of the first draw, when the model and the trainer
            are there.
        several: whether a sample is a list of subnets.
        space: what the sampler draws from, if it is not the whole of the model space.
        seed: of the subnets of validation, which are drawn uniformly.
        accept: what the subnets of validation must meet.
    """

    def __init__(
        self,
        module: BaseOneShotLightningModule,
        build: Callable[[str | None], Sampler],
        *,
        several: bool,
        space: SearchSpace | None = None,
        seed: int = 0,
        accept: Callable[[Architecture], bool] | None = None,
    ) -> None:
        super().__init__(module)
        self.several = several
        self.loss_weights: Callable[[Sequence[Architecture]], Sequence[float]] = _ones
        self.losses: Sequence[torch.Tensor] = ()
        """Of the subnets of the last batch, before they were weighed."""
        self._build = build
        self._space = space
        self._seed = seed
        self._accept = accept
        self._group_by: str | None = None
        self._samplers: dict[str, Sampler] = {}
        self._loaded: dict[str, Any] = {}

    @property
    def space(self) -> SearchSpace:
        """What the sampler draws from."""
        return super().space if self._space is None else self._space

    def constrain(self, group_by: GroupBy) -> None:
        """Have the sampler draw subnets that agree in a label.

        Raises:
            ValueError: the groups are those of a function.
        """
        if not self.several:
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

    def sampler(self) -> Sampler | None:
        """A new one, of the group that the subnets of an update are constrained to."""
        return self._build(self._group_by)

    def weigh(self, training: DynamicTraining) -> None:
        """Take the weights of the losses from a training."""
        self.loss_weights = training.loss_weights

    def loss(self, outputs: Any) -> torch.Tensor | None:
        """The mean over the subnets; Lightning knows that of the weighed losses only."""
        return torch.stack(list(self.losses)).mean() if self.losses else None

    def draw(self) -> Sequence[Architecture]:
        """The subnets of the update: those of its first micro-batch."""
        if begins_update(self.module.trainer) or not self.architectures:
            drawn = self._sampler("training").sample()
            self.architectures = [drawn] if isinstance(drawn, Mapping) else drawn
        return self.architectures

    def draw_validation(self) -> Architecture:
        """A subnet to validate; it never counts."""
        drawn = self._sampler("validation").sample()
        assert isinstance(drawn, Mapping)
        return drawn

    def _sampler(self, stage: str) -> Sampler:
        if stage not in self._samplers:
            sampler: Sampler
            if stage == "training":
                sampler = self._build(self._group_by)
            else:
                stream = int(np.random.SeedSequence([self._seed, 1]).generate_state(1)[0])
                sampler = UniformSampler(self.space, stream, self._accept)
            if stage in self._loaded:
                sampler.load_state_dict(self._loaded.pop(stage))
            self._samplers[stage] = sampler
        return self._samplers[stage]

    def state_dict(self) -> dict[str, Any]:
        """State of the samplers, and the subnets of the update at hand."""
        samplers = {stage: sampler.state_dict() for stage, sampler in self._samplers.items()}
        return self._loaded | samplers | {"architectures": list(self.architectures)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        # Callbacks are restored ahead of `on_fit_start`, where the samplers cannot be built yet.
        self._samplers = {}
        self._loaded = {key: value for key, value in state.items() if key != "architectures"}
        self.architectures = state["architectures"]


def _ones(architectures: Sequence[Architecture]) -> list[float]:
    return [1.0] * len(architectures)


def accept_of(
    module: RandomSamplingLightningModule,
) -> Callable[[Architecture], bool] | None:
    """The filter of a module's strategy, of an architecture."""
    valid = module.filter
    if valid is None:
        return None
    return lambda architecture: valid(sample_of(architecture, module.model))


def begins_update(trainer: pl.Trainer) -> bool:
    """Whether the batch at hand is the first of an update: gradients accumulate over several."""
    return trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A generator's state without numpy arrays, so that it loads with `weights_only=True`."""
    key = state["state"]
    return state | {"state": {"key": key["key"].tolist(), "pos": key["pos"]}}
