"""A host whose training strategy samples, runs backward and forgets, all in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.host.options import Options
from nas_dynamic.host.sampling_state import SamplingOncePerUpdate
from nas_dynamic.host.seam import Host
from nas_dynamic.space import Architecture

__all__ = ["StrategyHost"]

Result = TypeVar("Result")


class StrategyHost(Host):
    """Tells the subnets that a call of a strategy trains, and weights their losses.

    A call may train several subnets, each with a loss and a backward pass of its own, so that the
    weights are needed before it is known which ones they are. So every call is rehearsed: made once
    with a network that computes nothing, after which what it has drawn is put back. The
    micro-batches of one update train the same subnets, see `SamplingOncePerUpdate`.

    A subclass puts `recorded` around what draws, and `weighted` around the loss function of the
    strategy, has calls go through `call`, and says by `state_dict` and `load_state_dict` what the
    strategy samples from.

    Attributes:
        training: the `DynamicTraining`; there from `start` on.
    """

    multi_subnet = True
    training: DynamicTraining
    _subnets: Sequence[Architecture] | None = None  # of the last call that was made
    _calling: list[Architecture] | None = None  # those of a call, so far
    _weights: Iterator[float] | None = None  # None in a rehearsal
    _next: Architecture | None = None  # None: nothing was drawn

    def start(self, options: Options) -> None:
        """Attach dynamic training, and keep the sampling in the optimizer's checkpoints."""
        self._sampling = SamplingOncePerUpdate(self, options, self)
        self.training = self._sampling.training

    def sampled(self) -> Sequence[Architecture]:
        """Return the subnets of this update."""
        if self._subnets is None or not self._sampling.begun:
            raise RuntimeError(
                "the strategy has not been called for this update: call the one that dynamic() "
                "returned"
            )
        return self._subnets

    def undrawn(self) -> Architecture:
        """Return the subnet of a loss before which nothing was drawn, such as the whole network."""
        raise RuntimeError("the strategy took a loss of no subnet that it has drawn")

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state of what the strategy samples from, as plain data."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        raise NotImplementedError

    def call(self, rehearse: Callable[[], Any], train: Callable[[], Result]) -> Result:
        """Call the strategy with a network that computes nothing, and then with its own.

        Raises:
            ValueError: the call trains subnets of several momentum groups.
        """
        self._subnets = None
        self._sampling.begin()
        before = self.state_dict()
        try:
            subnets, _ = self._run(rehearse, None)
        finally:
            self.load_state_dict(before)
        momentum = self.training.momentum
        if momentum is not None and len({momentum.group(a) for a in subnets}) > 1:
            raise ValueError(
                "the strategy trains subnets of several momentum groups in one update: say "
                "momentum=False, or use a strategy of one subnet an update"
            )
        self._subnets, result = self._run(train, iter(self.training.loss_weights(subnets)))
        return result

    def _run(
        self, call: Callable[[], Result], weights: Iterator[float] | None
    ) -> tuple[list[Architecture], Result]:
        subnets: list[Architecture] = []
        self._calling, self._weights, self._next = subnets, weights, None
        try:
            return subnets, call()
        finally:
            self._calling = None

    def recorded(
        self, draw: Callable[[], Architecture], given: Callable[[Architecture], Any] = dict
    ) -> Callable[[], Any]:
        """Return a function that draws as before; the next loss is that of what it has drawn.

        Args:
            draw: () → the subnet, by the labels of the space.
            given: the subnet → what the strategy is given.
        """

        def drawn() -> Any:
            subnet = draw()
            self._next = self.space.decode(self.space.encode(subnet))
            return given(subnet)

        return drawn

    def weighted(self, loss_function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a loss function whose losses are weighted in calls, and as before elsewhere."""

        def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
            if self._calling is None:
                return loss_function(*args, **kwargs)
            self._calling.append(self.undrawn() if self._next is None else self._next)
            self._next = None
            if self._weights is None:  # a rehearsal
                return torch.zeros((), requires_grad=True).clone()
            return loss_function(*args, **kwargs) * next(self._weights)

        return loss
