"""whittle: `training_strategy=dynamic(RandomStrategy(sampler=sampler, …), optimizer, model)`."""

# ruff: noqa: NPY002 (the global generator is the one that whittle draws from)
from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from nas_dynamic._extras import extra
from nas_dynamic.attach.innermost import innermost
from nas_dynamic.complexity import CachedComplexity, Complexity
from nas_dynamic.host import Host, Options, attach, takes_options
from nas_dynamic.sampling_state import SamplingOncePerUpdate
from nas_dynamic.space import Architecture, SearchSpace
from nas_dynamic.update_log import UpdateLog

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
    total_steps: int | None = None,
    curve: str | Callable[[float], float] | None = None,
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
    `nas_dynamic.update_log.UpdateLog` says of every update, at the number of the strategy's call.

    Args:
        strategy: `RandomStrategy`, `SandwichStrategy`, `RandomLinearStrategy`, `ATS` or one of
            your own, whose sampler is a `RandomSampler`.
        optimizer: of the model, as it is or as `fabric.setup_optimizers` gives it.
        model: whittle's GPT, as it is or as `fabric.setup_module` gives it.
        total_steps: optimizer updates in the whole training, for the paper's polynomial decay; the
            loop's own lr has to be constant then. By default CaLR bends the lr schedule that
            the loop has (`curve="scheduler"`), as the one of `fit`.
        curve: the decay; `"polynomial"` with `total_steps`, `"scheduler"` without.
        seed: in place of NumPy's global generator, which `RandomLinearStrategy` draws from. The
            sampler has a seed of its own, which must be the same on all ranks.
        options: see `nas_dynamic.host.Options`.

    Raises:
        TypeError: the strategy samples nothing, or its sampler is another one.
        ValueError: an option is illegal, or the optimizer cannot be attached to.
    """
    if isinstance(strategy, StandardStrategy):
        raise TypeError("StandardStrategy samples no subnet; use RandomStrategy")
    curve = curve or ("scheduler" if total_steps is None else "polynomial")
    given = Options.of(total_steps=total_steps, curve=curve, **options)
    kind, attached = type(strategy), copy.copy(strategy)
    attached.__class__ = type(f"Dynamic{kind.__name__}", (_DynamicStrategy, kind), {})
    attached._subnets = _Subnets(attached, innermost(optimizer), model, seed, given)
    attached.training = attached._subnets.training
    return attached


class _DynamicStrategy:
    """A training strategy whose subnets are told."""

    _subnets: _Subnets

    def __call__(self, model: Any, inputs: Any, outputs: Any, *args: Any, **kwargs: Any) -> float:
        rest = (inputs, outputs, *args)
        with self._subnets.rehearsal():
            super().__call__(_Stub(), *rest, **kwargs)  # type: ignore[misc]
        with self._subnets.weighing():
            return super().__call__(model, *rest, **kwargs)  # type: ignore[misc, no-any-return]


class _Stub:
    """Stands for the super-network where nothing is computed."""

    def __call__(self, *inputs: Any) -> torch.Tensor:
        return torch.zeros((), requires_grad=True)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _Subnets(Host):
    """What a strategy trains, update by update."""

    multi_subnet = True

    def __init__(
        self, strategy: Any, optimizer: torch.optim.Optimizer, model: Any, seed: int, given: Options
    ) -> None:
        sampler = strategy.sampler
        self.strategy, self.optimizer, self.model, self.seed = strategy, optimizer, model, seed
        self.space = search_space(sampler)
        self._raw = copy.copy(sampler)  # of the same generator
        self._raw.cast_search_space = False
        self._cast = sampler.search_space.cast if sampler.cast_search_space else dict
        self._parameters = CachedComplexity(
            self.space, lambda a: float(sampler.get_parameters(model, self._cast(dict(a))))
        )
        self._global = np.random.RandomState(seed)
        self._told: list[Architecture] = []  # by the call at hand
        self._trained: list[Architecture] = []  # by the last call
        self._next: Architecture | None = None  # None: the super-network
        self._weights: Iterator[float] | None = None
        self._rehearsing = False
        self._batches = 0
        self.training = attach(self, given)
        strategy.sampler = copy.copy(sampler)
        for name in ("sample", "get_smallest_sub_network", "get_largest_sub_network"):
            setattr(strategy.sampler, name, self._recorded(getattr(self._raw, name)))
        strategy.loss_function = self._weighted(strategy.loss_function)
        strategy.kd_loss = strategy.kd_loss and self._weighted(strategy.kd_loss)
        self._sampling = SamplingOncePerUpdate(self.training, self)
        self._log = UpdateLog(self.training)
        optimizer.register_step_post_hook(self._log_update)

    def sampled(self) -> Sequence[Architecture]:
        """Return the subnets of this update."""
        if not (self._sampling.begun and self._trained):
            raise RuntimeError(
                "the strategy has not been called for this update: call what dynamic() returned"
            )
        return self._trained

    def complexity(self, measure: Literal["parameters", "macs"]) -> Complexity:
        """Return whittle's count of the parameters."""
        if measure == "macs":
            raise ValueError(
                "complexity='macs' needs an input: give a function of an architecture, for "
                "instance one that calls whittle.metrics.flops.compute_flops"
            )
        return self._parameters

    def total_steps(self) -> int | None:
        """Return None: a strategy does not know it."""
        return None

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """See which subnets a call trains, and put back what it has drawn."""
        self._batches = self._batches + 1 if self._sampling.begun else 1
        self._sampling.begin()
        before, fabric = self.state_dict(), self.strategy.fabric
        self._told, self._trained, self._next = [], [], None
        self.strategy.fabric, self._rehearsing = None, True
        try:
            with self._own_generator():
                yield
        finally:
            self.strategy.fabric, self._rehearsing = fabric, False
            self.load_state_dict(before)
        momentum = self.training.momentum
        if momentum is not None and len({momentum.group(a) for a in self._told}) > 1:
            raise ValueError(
                f"{type(self.strategy).__name__} trains subnets of several momentum groups in one "
                "update: say momentum=False, or use RandomStrategy(random_samples=1)"
            )

    @contextlib.contextmanager
    def weighing(self) -> Iterator[None]:
        """Weight the losses of a call, and tell its subnets."""
        self._weights = iter(self.training.loss_weights(self._told))
        self._told, self._next = [], None
        try:
            with self._own_generator():
                yield
            self._trained = self._told
        finally:
            self._weights = None

    @contextlib.contextmanager
    def _own_generator(self) -> Iterator[None]:
        outer = np.random.get_state()
        np.random.set_state(self._global.get_state())
        try:
            yield
        finally:
            self._global.set_state(np.random.get_state())
            np.random.set_state(outer)

    def _recorded(self, draw: Callable[[], Any]) -> Callable[[], Any]:
        def drawn() -> Any:
            config = draw()
            self._next = self.space.decode(self.space.encode(config))
            return self._cast(config)

        return drawn

    def _weighted(self, loss_function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
            if self._rehearsing or self._weights is not None:
                self._told.append(self._next or self._super_network)
                self._next = None
            if self._rehearsing:
                return torch.zeros((), requires_grad=True).clone()
            value = loss_function(*args, **kwargs)
            weight = 1.0 if self._weights is None else next(self._weights)
            return value if weight == 1 else value * weight

        return loss

    @functools.cached_property
    def _super_network(self) -> Architecture:
        largest = self.space.decode(self.space.encode(self._raw.get_largest_sub_network()))
        self.model.reset_super_network()
        found, whole = self._parameters(largest), compute_parameters(self.model)
        if found != whole:
            raise ValueError(
                f"the largest subnet of the space has {found:,.0f} parameters and the "
                f"super-network, which {type(self.strategy).__name__} trains too, {whole:,.0f}: "
                "let the space reach up to it, or use RandomStrategy"
            )
        return largest

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampling: generators, and the counter of the calls."""
        return {
            "sampler": _plain_state(self._raw.rng),
            "global": _plain_state(self._global),
            "current_step": getattr(self.strategy, "current_step", None),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._raw.rng.set_state(state["sampler"])
        self._global.set_state(state["global"])
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
    domains = sampler.search_space.config_space.items()
    return SearchSpace({name: _candidates(name, d) for name, d in domains if isinstance(d, Domain)})


def _candidates(name: str, domain: Domain) -> list[Any]:
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer):
        return list(range(domain.lower, domain.upper + 1))
    raise TypeError(f"{name} is drawn from {domain}, which is not finite; use choice(…)")


def _plain_state(generator: np.random.RandomState) -> dict[str, Any]:
    """Return the state without arrays: it loads with `weights_only=True`."""
    state: dict[str, Any] = generator.get_state(legacy=False)
    return state | {"state": state["state"] | {"key": state["state"]["key"].tolist()}}
