"""NNI one-shot strategies that train more than one subnet an update, or more than one supernet.

Their samplers have seeds and their state is in Lightning's checkpoints; all of them take
`dynamic(...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.strategy import RandomOneShot
from pytorch_lightning import LightningModule

from nas_dynamic.adapters.nni.complexity import complexity_of
from nas_dynamic.adapters.nni.few_shot import FewShotEvaluator, SplitRule, SubSupernet
from nas_dynamic.adapters.nni.multi_subnet import SamplerModule
from nas_dynamic.adapters.nni.sampling import Sampling, accept_of
from nas_dynamic.complexity import Complexity
from nas_dynamic.sampling import FairSampler, Sampler, SandwichSampler, UniformSampler
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["FairOneShot", "FewShotOneShot", "SamplerOneShot", "SandwichOneShot"]


class SamplerOneShot(RandomOneShot):
    """Base of the strategies that train the subnets of a sampler.

    A subclass gives `build_sampler`, and says by `multi_subnet` whether a sample of it is a list.

    Args:
        seed: of the sampler.
        filter: what sampled subnets must meet, as in `RandomOneShot`.
        mutation_hooks: as in `RandomOneShot`.
    """

    multi_subnet = False
    distill = False

    def __init__(
        self, *, seed: int = 0, filter: Callable[[Sample], bool] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(filter, **kwargs)
        self.seed = seed

    def build_sampler(
        self, module: SamplerModule, space: SearchSpace, group_by: str | None
    ) -> Sampler:
        """Return the sampler of a training.

        Args:
            module: the one-shot module, with its model and its trainer.
            space: what to sample from.
            group_by: a label that the subnets of an update must agree in.
        """
        raise NotImplementedError

    def configure_oneshot_module(
        self, training_module: LightningModule, space: SearchSpace | None = None
    ) -> SamplerModule:
        """Return the module that trains a supernet, or a part of its space: a hook of NNI."""
        return SamplerModule(
            training_module,
            self.build_sampler,
            multi_subnet=self.multi_subnet,
            space=space,
            filter=self.filter,
            seed=self.seed,
            distill=self.distill,
        )

    def mutate_evaluator(self, evaluator: Lightning) -> Lightning:
        """Return the evaluator that trains the supernet: a hook of NNI."""
        mutated = super().mutate_evaluator(evaluator)
        mutated.trainer.callbacks.append(mutated.module.sampling)
        return mutated

    def sampling_of(self, module: BaseOneShotLightningModule, seed: int) -> Sampling:
        """Return the sampling of a module of this strategy, for `dynamic`."""
        assert isinstance(module, SamplerModule)
        return module.sampling


class FairOneShot(SamplerOneShot):
    """Strictly fair training (FairNAS): every update trains every candidate of a choice once.

    An update is the mean loss over K subnets, K the greatest number of candidates of any choice;
    see `FairSampler`, also for choices of unequal size. The mean, not the sum, so that an lr means
    what it means with `RandomOneShot`. Costs K forward and backward passes an update, and the
    memory of K graphs.

    Example:
        >>> strategy = FairOneShot(seed=1)
    """

    multi_subnet = True

    def build_sampler(
        self, module: SamplerModule, space: SearchSpace, group_by: str | None
    ) -> Sampler:
        """Return a sampler that permutes the candidates of each choice."""
        return FairSampler(space, self.seed, group_by, accept_of(module))


class SandwichOneShot(SamplerOneShot):
    """The sandwich rule (BigNAS): the largest subnet, the smallest and some random ones.

    An update is the mean of their losses; see `SandwichSampler`. Momentum separation does not go
    well with it, and `dynamic` leaves it out unless it is asked for: the subnets of an update are
    then of one group, its largest and its smallest, so that the ends of the space are trained in
    one of as many updates as there are groups.

    Args:
        randoms: number of random subnets an update.
        distill: only the largest learns from the labels, the others from its outputs (in-place
            distillation). The evaluator's model must give logits.
        complexity: what large and small mean; see `dynamic`.
        seed: of the sampler.
        filter: what random subnets must meet, as in `RandomOneShot`.
        mutation_hooks: as in `RandomOneShot`.

    Example:
        >>> strategy = SandwichOneShot(randoms=2, distill=True)
    """

    multi_subnet = True

    def __init__(
        self,
        *,
        randoms: int = 2,
        distill: bool = False,
        complexity: Literal["parameters", "macs"] | Complexity = "parameters",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.randoms = randoms
        self.distill = distill
        self.complexity = complexity

    def build_sampler(
        self, module: SamplerModule, space: SearchSpace, group_by: str | None
    ) -> Sampler:
        """Return a sampler of the ends of the space and of random subnets."""
        complexity = complexity_of(self.complexity, module.model, space, module.trainer)
        return SandwichSampler(
            space, complexity, self.randoms, self.seed, group_by, accept=accept_of(module)
        )


class FewShotOneShot(SamplerOneShot):
    """Few-shot NAS: a supernet, then a sub-supernet for each candidate of one choice.

    The evaluator trains the supernet as it is, one uniformly drawn subnet an update. Then the
    space is split on a label, and for each candidate a copy of the trained supernet goes on
    with the subnets that choose it: with an optimizer, a data order and, under `dynamic(...)`, a
    dynamic training of its own, whose bounds and default label are those of the sub-space.

    Args:
        label: what to split on; a function of the trained supernet that gives the label, such as
            a rule of `nas_dynamic.grouping`; by default `default_label` by parameters.
        epochs: of each sub-supernet; as many as the evaluator's by default.
        seed: of the samplers.
        filter: what sampled subnets must meet, as in `RandomOneShot`.
        mutation_hooks: as in `RandomOneShot`.

    Attributes:
        supernets: the sub-supernets, after the experiment.

    Source: Zhao et al., "Few-Shot Neural Architecture Search", ICML 2021.

    Example:
        >>> strategy = FewShotOneShot(epochs=5)
    """

    def __init__(
        self,
        *,
        label: SplitRule = None,
        epochs: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.label = label
        self.epochs = epochs
        self.supernets: list[SubSupernet] = []

    def build_sampler(
        self, module: SamplerModule, space: SearchSpace, group_by: str | None
    ) -> Sampler:
        """Return a uniform sampler."""
        return UniformSampler(space, self.seed, accept_of(module))

    def mutate_evaluator(self, evaluator: Lightning) -> Lightning:
        """Return an evaluator that trains the supernet and then the sub-supernets."""
        self.supernets = []
        mutated = super().mutate_evaluator(evaluator)
        data: dict[str, Any] = {"datamodule": mutated.datamodule}
        if mutated.datamodule is None:
            data = {
                "train_dataloaders": mutated.train_dataloaders,
                "val_dataloaders": mutated.val_dataloaders,
            }
        return FewShotEvaluator(
            self, mutated.module, mutated.trainer, fit_kwargs=mutated.fit_kwargs, **data
        )

    def supernet_of(self, architecture: Architecture) -> SubSupernet:
        """Return the sub-supernet that has a subnet.

        Raises:
            ValueError: none has it, or the training is not done.
        """
        for supernet in self.supernets:
            if architecture in supernet.space:
                return supernet
        raise ValueError(
            f"none of the {len(self.supernets)} sub-supernets has the subnet {dict(architecture)}; "
            "they are there once the experiment has run"
        )
