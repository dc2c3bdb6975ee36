"""A one-shot module that trains the subnets of a sampler, one or several in an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule
from torch import nn

from nas_dynamic.adapters.nni.sampling import SamplerSampling, accept_of
from nas_dynamic.adapters.nni.space import activate, sample_of
from nas_dynamic.sampling import Sampler
from nas_dynamic.space import SearchSpace

__all__ = ["SamplerModule", "distillation_loss"]

Build = Callable[["SamplerModule", SearchSpace, str | None], Sampler]


class SamplerModule(RandomSamplingLightningModule):
    """Trains, in each update, the mean loss of the subnets that a sampler gives.

    Optimization is automatic, so that AMP, clipping, gradient accumulation and DDP are
    Lightning's. The graphs of all subnets of an update are in memory at once.

    Args:
        training_module: the evaluator's, which computes the loss of one subnet.
        build: (module, space, group_by) → sampler.
        several: whether an update takes several subnets.
        space: what is sampled from, if it is not the whole of the model space.
        filter: what sampled subnets must meet, as in `RandomOneShot`.
        seed: of the subnets of validation.
        distill: the first subnet learns from the labels, the others from its outputs.
    """

    def __init__(
        self,
        training_module: pl.LightningModule,
        build: Build,
        *,
        several: bool,
        space: SearchSpace | None = None,
        filter: Callable[[Any], bool] | None = None,
        seed: int = 0,
        distill: bool = False,
    ) -> None:
        super().__init__(training_module, filter)
        self.distill = distill
        self.sampling: SamplerSampling = SamplerSampling(
            self,
            lambda group_by: build(self, self.sampling.space, group_by),
            several=several,
            space=space,
            seed=seed,
            accept=accept_of(self),
        )

    def resample(self) -> dict[str, Any]:
        """Activate a subnet to validate."""
        architecture = self.sampling.draw_validation()
        activate(self.model, architecture)
        return sample_of(architecture, self.model)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Mean over the subnets of the update of their weighed losses."""
        architectures = self.sampling.draw()
        weights = self.sampling.loss_weights(architectures)
        losses: list[torch.Tensor] = []
        weighed: list[torch.Tensor] = []
        with _recorded_outputs(self.model) as outputs:
            for architecture, weight in zip(architectures, weights, strict=True):
                activate(self.model, architecture)
                result = self.training_module.training_step(*args, **kwargs)
                loss = result["loss"] if isinstance(result, dict) else result
                if self.distill and losses:
                    loss = distillation_loss(outputs[-1], outputs[0])
                losses.append(loss.detach())
                weighed.append(weight * loss)
        self.sampling.losses = losses
        return torch.stack(weighed).mean()


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a subnet's logits, (batch, classes), with a teacher's probabilities.

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
    """The outputs of a model in the context, one for each call."""
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
