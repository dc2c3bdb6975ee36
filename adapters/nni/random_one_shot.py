"""The subnets of NNI's `RandomOneShot`, from generators that have a seed and a state."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from nni.mutable import Sample
from nni.mutable.annotation import Constraint
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule

from nas_dynamic.adapters.nni.sampling import SeededSampling, accept_of
from nas_dynamic.adapters.nni.space import architecture_of
from nas_dynamic.host.sampling_state import numpy_state
from nas_dynamic.sampling import Sampler, UniformSampler

__all__ = ["MutableSampler", "RandomOneShotSampling"]


class RandomOneShotSampling(SeededSampling):
    """The subnets of a `RandomOneShot`, whose own sampling cannot be seeded.

    Args:
        module: the strategy's.
        seed: of both generators, that of training and that of validation.
    """

    def __init__(self, module: RandomSamplingLightningModule, seed: int) -> None:
        super().__init__(module)
        self.seed = seed

    def training_sampler(self, group_by: str | None) -> Sampler:
        """Return a new sampler of the training."""
        return MutableSampler(self.module, self.seed, 0)

    def validation_sampler(self) -> Sampler:
        """Return a new sampler of the subnets to validate."""
        return MutableSampler(self.module, self.seed, 1)

    def sampler(self) -> Sampler | None:
        """Return a uniform one, within the strategy's filter."""
        accept = accept_of(self.module)
        return None if accept is None else UniformSampler(self.space, accept=accept)


class MutableSampler:
    """Draws one subnet a step by the distributions of NNI's choices, and activates none.

    Args:
        module: has the model space and the filter that a subnet must pass.
        seed: of the sampler's own generator.
        stream: a number of the generator among those of a seed.
    """

    def __init__(self, module: RandomSamplingLightningModule, seed: int, stream: int) -> None:
        self._module = module
        # Listed once: that takes as long as an activation, up to 100 ms.
        self._choices = [
            mutable
            for mutable in module.model.simplify().values()
            if not isinstance(mutable, Constraint)
        ]
        self._generator = np.random.RandomState(
            np.random.SeedSequence([seed, stream]).generate_state(4)
        )

    def sample(self) -> dict[str, Hashable]:
        """Return the subnet of the next step.

        Raises:
            RuntimeError: none of 100 passes the filter.
        """
        return architecture_of(self._module._repeat_until_valid(self._draw), self._module.model)

    def _draw(self) -> Sample:
        sample: Sample = {}
        for choice in self._choices:
            choice.random(memo=sample, random_state=self._generator)
        return sample

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator, as plain data."""
        return numpy_state(self._generator)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._generator.set_state(dict(state))
