"""A one-shot module that trains the subnets of a sampler, one or more in an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule
from torch import nn

from nas_dynamic.adapters.lightning import UNWEIGHTED
from nas_dynamic.adapters.nni.sampling import SeededSampling, accept_of
from nas_dynamic.adapters.nni.space import activate
from nas_dynamic.sampling import Sampler, UniformSampler
from nas_dynamic.space import SearchSpace

__all__ = ["SamplerModule", "SamplerSampling", "distillation_loss"]

BuildSampler = Callable[["SamplerModule", SearchSpace, str | None], Sampler]
"""(module, space, label that the subnets of an update agree in) → sampler."""


class SamplerModule(RandomSamplingLightningModule):
    """Trains, in each update, the mean loss of the subnets that a sampler gives.

    Optimization is automatic, so that AMP, clipping, gradient accumulation and DDP are
    Lightning's. The graphs of all subnets of an update are in memory at once.

    Args:
        training_module: the evaluator's, which computes the loss of one subnet.
        build: makes the sampler.
        multi_subnet: whether a sample is a list of subnets.
        space: what is sampled from, if it is not the whole of the model space.
        filter: what sampled subnets must meet, as in `RandomOneShot`.
        seed: of the subnets of validation.
        distill: the first subnet learns from the labels, the others from its outputs.
    """

    def __init__(
        self,
        training_module: pl.LightningModule,
        build: BuildSampler,
        *,
        multi_subnet: bool,
        space: SearchSpace | None = None,
        filter: Callable[[Sample], bool] | None = None,
        seed: int = 0,
        distill: bool = False,
    ) -> None:
        super().__init__(training_module, filter)
        self.distill = distill
        self.sampling = SamplerSampling(self, build, multi_subnet, space, seed)

    def resample(self) -> Sample:
        """Activate a subnet to validate."""
        return self.sampling.resample()

    def training_step(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the mean over the subnets of the update of their weighted losses, and of these."""
        architectures = self.sampling.draw()
        weights = self.sampling.loss_weights(architectures)
        losses: list[torch.Tensor] = []
        weighted: list[torch.Tensor] = []
        with _recorded_outputs(self.model) as outputs:
            for architecture, weight in zip(architectures, weights, strict=True):
                activate(self.model, architecture)
                result = self.training_module.training_step(*args, **kwargs)
                loss = result["loss"] if isinstance(result, dict) else result
                if self.distill and losses:
                    loss = distillation_loss(outputs[-1], outputs[0])
                losses.append(loss.detach())
                weighted.append(weight * loss)
        return {"loss": torch.stack(weighted).mean(), UNWEIGHTED: torch.stack(losses).mean()}


class SamplerSampling(SeededSampling):
    """The subnets that a `SamplerModule` trains; those of validation are drawn uniformly.

    Args:
        module: the one-shot module.
        build: makes the sampler of the training.
        multi_subnet: whether a sample is a list of subnets.
        space: what is sampled from, if it is not the whole of the model space.
        seed: of the subnets of validation.
    """

    def __init__(
        self,
        module: SamplerModule,
        build: BuildSampler,
        multi_subnet: bool,
        space: SearchSpace | None,
        seed: int,
    ) -> None:
        super().__init__(module)
        self.multi_subnet = multi_subnet
        self._build = build
        self._space = space
        self._seed = seed

    @property
    def space(self) -> SearchSpace:
        """What the samplers draw from."""
        return super().space if self._space is None else self._space

    def training_sampler(self, group_by: str | None) -> Sampler:
        """Return a new sampler of the training."""
        return self._build(self.module, self.space, group_by)

    def validation_sampler(self) -> Sampler:
        """Return a uniform sampler, within the strategy's filter."""
        seed = int(np.random.SeedSequence([self._seed, 1]).generate_state(1)[0])
        return UniformSampler(self.space, seed, accept_of(self.module))


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of a subnet's logits, (batch, classes), with a teacher's.

    Source: in-place distillation of Yu et al., "Universally Slimmable Networks and Improved
    Training Techniques", ICCV 2019, and of BigNAS.
    """
    if not (torch.is_tensor(student) and torch.is_tensor(teacher) and student.dim() == 2):
        raise TypeError(
            "distillation needs a model whose output is one tensor of logits, (batch, classes); "
            "use SandwichOneShot(distill=False)"
        )
    return nn.functional.cross_entropy(student, teacher.detach().softmax(1))


@contextmanager
def _recorded_outputs(model: nn.Module) -> Iterator[list[Any]]:
    """Collect the outputs of a model in the context, one for each call."""
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
