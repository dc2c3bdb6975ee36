"""whittle: `training_strategy=dynamic(RandomStrategy(sampler=sampler, …), optimizer, model)`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch

from nas_dynamic._extras import extra
from nas_dynamic.attach.innermost import innermost
from nas_dynamic.complexity import CachedComplexity, Complexity
from nas_dynamic.host import Options, takes_options
from nas_dynamic.host.sampling_state import GlobalGenerators, numpy_state
from nas_dynamic.host.strategy_host import StrategyHost
from nas_dynamic.host.update_log import UpdateLog
from nas_dynamic.space import Architecture, SearchSpace

with extra("whittle"):
    from syne_tune.config_space import Categorical, Domain, Integer
    from whittle.metrics.parameters import compute_parameters
    from whittle.sampling.random_sampler import RandomSampler
    from whittle.training_strategies import StandardStrategy
    from whittle.training_strategies.base_strategy import BaseTrainingStrategy

__all__ = ["dynamic", "search_space"]

Strategy = TypeVar("Strategy", bound=BaseTrainingStrategy)


@takes_options
def dynamic(
    strategy: Strategy,
    optimizer: Any,
    model: Any,
    *,
    seed: int = 0,
    **options: Any,
) -> Strategy:
    """Train the super-network of a training strategy with CaLR and momentum separation.

    Returns a copy of the strategy, for `whittle.pretrain_super_network.fit` or a loop of one's
    own, of a class derived from its class; its `training` is the `DynamicTraining`. It samples,
    runs backward and resets as before, but the micro-batches of one update train the same subnets:
    each begins from the state of the sampling that the first began from, counters such as ATS's
    included. The optimizer's `state_dict` holds that state. A subnet whose loss is that of the
    super-network is told as the largest of the space. Where an update trains several subnets, CaLR
    weights their losses. The loggers of the strategy's Fabric get what
    `UpdateLog` says of every update, at the number of the strategy's call.

    Args:
        strategy: `RandomStrategy`, `SandwichStrategy`, `RandomLinearStrategy`, `ATS` or one of
            your own, whose sampler is a `RandomSampler`.
        optimizer: of the model, as it is or as `fabric.setup_optimizers` gives it.
        model: whittle's GPT, as it is or as `fabric.setup_module` gives it.
        seed: in place of NumPy's global generator, which `RandomLinearStrategy` draws from. The
            sampler has a seed of its own, which must be the same on all ranks.
        options: see `nas_dynamic.host.Options`. With `total_steps`, optimizer updates in the whole
            training, the decay is the paper's polynomial, and the loop's own lr has to be
            constant; without, CaLR bends the lr schedule that the loop has, as `fit` has one.

    Raises:
        TypeError: the strategy samples nothing, or its sampler is another one.
        ValueError: an option is illegal, or the optimizer cannot be attached to.
    """
    if isinstance(strategy, StandardStrategy):
        raise TypeError("StandardStrategy samples no subnet; use RandomStrategy")
    given = Options.of_loop(**options)
    kind, attached = type(strategy), copy.copy(strategy)
    attached.__class__ = type(f"Dynamic{kind.__name__}", (_DynamicStrategy, kind), {})
    attached._host = _StrategyHost(attached, innermost(optimizer), model, seed)
    attached._host.start(given)
    attached.training = attached._host.training
    return attached


class _DynamicStrategy:
    """A training strategy whose subnets are told."""

    _host: _StrategyHost

    def __call__(self: Any, model: Any, *args: Any, **kwargs: Any) -> float:
        call = super().__call__  # type: ignore[misc]

        def rehearse() -> None:
            fabric, self.fabric = self.fabric, None
            try:
                call(_Stub(), *args, **kwargs)
            finally:
                self.fabric = fabric

        return float(self._host.call(rehearse, lambda: call(model, *args, **kwargs)))


class _Stub:
    """Stands for the super-network where nothing is computed."""

    def __call__(self, *inputs: Any) -> torch.Tensor:
        return torch.zeros((), requires_grad=True)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _StrategyHost(StrategyHost):
    """What a strategy trains, update by update."""

    def __init__(self, strategy: Any, optimizer: torch.optim.Optimizer, model: Any, seed: int):
        sampler = strategy.sampler
        self.strategy, self.optimizer, self.model, self.seed = strategy, optimizer, model, seed
        self.space = search_space(sampler)
        self._raw = copy.copy(sampler)  # of the same generator
        self._raw.cast_search_space = False
        cast = sampler.search_space.cast if sampler.cast_search_space else dict
        self._parameters = CachedComplexity(
            self.space, lambda a: float(sampler.get_parameters(model, cast(dict(a))))
        )
        self._global, self._batches = GlobalGenerators(seed), 0
        strategy.sampler = copy.copy(sampler)
        for name in ("sample", "get_smallest_sub_network", "get_largest_sub_network"):
            setattr(strategy.sampler, name, self.recorded(getattr(self._raw, name), cast))
        strategy.loss_function = self.weighted(strategy.loss_function)
        strategy.kd_loss = strategy.kd_loss and self.weighted(strategy.kd_loss)

    def start(self, options: Options) -> None:
        """Attach, and log what the updates use."""
        super().start(options)
        self._log = UpdateLog(self.training)
        self.optimizer.register_step_post_hook(self._log_update)

    def call(self, rehearse: Callable[[], Any], train: Callable[[], Any]) -> Any:
        """Call the strategy, whose draws from global generators are its own."""
        self._batches = self._batches + 1 if self._sampling.begun else 1

        def own(call: Callable[[], Any]) -> Any:
            with self._global:
                return call()

        return super().call(lambda: own(rehearse), lambda: own(train))

    def complexity(self, measure: Literal["parameters", "macs"]) -> Complexity:
        """Return whittle's count of the parameters."""
        if measure == "macs":
            raise ValueError("complexity='macs' needs an input; give a function of an architecture")
        return self._parameters

    @functools.cached_property
    def _whole(self) -> Architecture:
        largest = self.space.decode(self.space.encode(self._raw.get_largest_sub_network()))
        self.model.reset_super_network()
        if self._parameters(largest) != compute_parameters(self.model):
            raise ValueError(
                f"{type(self.strategy).__name__} trains the super-network too, and the largest "
                "subnet of the space is less: let the space reach up to it, or use RandomStrategy"
            )
        return largest

    def undrawn(self) -> Architecture:
        """Return the super-network, as the largest subnet of the space."""
        return self._whole

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampling: generators, and the counter of the calls."""
        step = getattr(self.strategy, "current_step", None)
        sampler = numpy_state(self._raw.rng)
        return {"sampler": sampler, "global": self._global.state_dict(), "current_step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._raw.rng.set_state(state["sampler"])
        self._global.load_state_dict(state["global"])
        if state["current_step"] is not None:
            self.strategy.current_step = state["current_step"]

    def _log_update(self, *hook: Any) -> None:
        fabric, metrics = self.strategy.fabric, self._log.metrics()
        if fabric is not None and metrics is not None:
            fabric.log_dict(metrics, step=(self._log.step + 1) * self._batches - 1)


def search_space(sampler: RandomSampler) -> SearchSpace:
    """Return the space that a whittle sampler draws from, by the names of its configuration.

    Raises:
        TypeError: it is no plain `RandomSampler`, or draws from an interval of real numbers.
    """
    if getattr(type(sampler), "sample", None) is not RandomSampler.sample:
        raise TypeError(
            f"{type(sampler).__name__} does not draw each choice by itself; use RandomSampler"
        )
    choices: dict[str, Sequence[Any]] = {}
    for name, domain in sampler.search_space.config_space.items():
        if isinstance(domain, Categorical):
            choices[name] = domain.categories
        elif isinstance(domain, Integer):
            choices[name] = range(domain.lower, domain.upper + 1)
        elif isinstance(domain, Domain):
            raise TypeError(f"{name} is drawn from {domain}, which is not finite; use choice(…)")
    return SearchSpace(choices)
