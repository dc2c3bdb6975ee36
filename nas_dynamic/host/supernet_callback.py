"""What the callbacks of frameworks that train a model share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.host.options import Options, takes_options
from nas_dynamic.host.supernet_host import SupernetHost, find_supernet
from nas_dynamic.host.update_log import UpdateLog
from nas_dynamic.sampling import Sampler

__all__ = ["SupernetCallback"]


class SupernetCallback:
    """Finds the supernet in the model of a framework, and trains it dynamically.

    Args:
        sampler: draws the subnet of each update; uniformly by default. One that draws several
            needs a loss that sums those of `weighted_subnets`.
        seed: of the default sampler, the same on all ranks.
        options: see `nas_dynamic.host.Options`.

    Attributes:
        host: of the current training, or of the last; None before the first.

    Raises:
        TypeError: there is no such option.
        ValueError: an option is not what it may be.
    """

    host: SupernetHost | None = None
    log: UpdateLog | None = None

    @takes_options
    def __init__(self, *, sampler: Sampler | None = None, seed: int = 0, **options: Any) -> None:
        super().__init__()
        self.options = Options.of(**options)
        self._sampler, self._seed = sampler, seed

    @property
    def training(self) -> DynamicTraining | None:
        """What is attached, or was in the last training: `training.last` is its last update."""
        return None if self.host is None else self.host.training

    def draw(self) -> None:
        """Have the supernet compute the subnet of this update, which the first call draws.

        The framework's events call it. Call it yourself before the second of two updates that
        one training step makes.
        """
        assert self.host is not None, "no training has started"
        self.host.draw()

    def weighted_subnets(self) -> Iterator[float]:
        """Have the supernet compute each subnet of this update in turn; yield its loss's weight.

        For the training step, or the forward pass of a model, where the sampler draws several:

            loss = sum(w * loss_of(batch) for w in callback.weighted_subnets())
        """
        assert self.host is not None, "no training has started"
        return self.host.weighted_subnets()

    def start(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        total_steps: Callable[[], int | None],
        options: Options | None = None,
        *,
        has_scheduler: Callable[[torch.optim.Optimizer], bool | None] = lambda optimizer: None,
    ) -> SupernetHost:
        """Attach to the optimizer of the supernet in a model, and return the host.

        Args:
            model: that the framework trains.
            optimizers: that it steps.
            total_steps: () → number of updates of the whole training; None if it has no end.
            options: in place of those that were given to the callback.
            has_scheduler: optimizer → whether an lr scheduler sets its lr; None if not known.

        Raises:
            ValueError: there is no such supernet, or no one optimizer of it; or an option does not
                suit, or the optimizer cannot be attached to.
        """
        supernet, optimizer = find_supernet(model, optimizers)
        host = SupernetHost(
            supernet,
            optimizer,
            total_steps,
            sampler=self._sampler,
            seed=self._seed,
            has_scheduler=has_scheduler(optimizer),
        )
        host.undrawn = "a training step made two; call draw() of this callback before the second"
        host.start(self.options if options is None else options)
        self.host, self.log = host, UpdateLog(host.training)
        return host

    def stop(self) -> None:
        """Leave a plain optimizer, if there is one that is not."""
        if self.host is not None:
            self.host.stop()
