"""`attach(optimizer, supernet)`: dynamic training in a script of the shape of timm's train.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import torch
from timm.utils import unwrap_model
from torch import nn

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.complexity import Complexity
from nas_dynamic.host import Host, Options, takes_options
from nas_dynamic.host import attach as attach_host
from nas_dynamic.sampling import Sampler, UniformSampler
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Attached", "attach"]

CHECKPOINT_KEY = "dynamic_sampling"


@takes_options
def attach(
    optimizer: torch.optim.Optimizer,
    supernet: nn.Module,
    total_steps: int | None = None,
    *,
    curve: str | Callable[[float], float] | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    **options: Any,
) -> Attached:
    """Train a supernet with CaLR and momentum separation, and draw its subnets.

    Goes after `create_optimizer_v2`, ahead of resuming, EMA and `DistributedDataParallel`. From
    then on the supernet draws a subnet at the first forward pass in training mode of every
    update, and keeps it until the optimizer has stepped, so that accumulated micro-batches train
    one subnet. A step that GradScaler skips is no update. In evaluation mode the supernet
    computes the subnet that was activated by `supernet.activate`, at first the one that it was
    made from: validation then scores that one, in the EMA model as well.

    The optimizer's `state_dict` holds the state of the sampling with that of the training, so
    that a checkpoint of timm's `CheckpointSaver` resumes exactly. All ranks draw the same
    subnets by the seed.

    Args:
        optimizer: of the supernet's weights.
        supernet: made by `fuse`, `mobile_supernet` or `elastic_vit`.
        total_steps: optimizer updates in the whole training, for the paper's polynomial decay;
            the script's own lr schedule has to be constant then. By default CaLR bends the lr
            schedule that the script has (`curve="scheduler"`), its warm-up apart; a constant lr
            has no decay to bend.
        curve: the decay; `"polynomial"` with `total_steps`, `"scheduler"` without.
        sampler: draws one subnet an update; `UniformSampler` by default. To resume, give a new
            one of the same seed: with γ by rank, γ depends on what it draws first.
        seed: of the default sampler, the same on all ranks.
        options: see `nas_dynamic.host.Options`. MACs are at the size of image that the model is
            made for. By rank, γ goes by the subnets that `sampler` draws.

    Raises:
        TypeError: the model is no supernet.
        ValueError: an option is illegal, or the optimizer cannot be attached to: Lookahead, LBFGS.
    """
    supernet = unwrap_model(supernet)
    space = getattr(supernet, "space", None)
    if not isinstance(space, SearchSpace) or not hasattr(supernet, "_select"):
        raise TypeError(
            f"{type(supernet).__name__} is no supernet of this adapter; make one by fuse(), "
            "mobile_supernet() or elastic_vit()"
        )
    curve = curve or ("scheduler" if total_steps is None else "polynomial")
    given = Options.of(total_steps=total_steps, curve=curve, **options)
    host = _Host(optimizer, supernet, sampler or UniformSampler(space, seed), sampler is not None)
    training = attach_host(host, given)
    host.sampling.start(training)
    return Attached(training, host.sampling)


class _Host(Host):
    """A supernet that draws its subnets in its forward pass."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, supernet: Any, sampler: Sampler, own: bool
    ) -> None:
        self.optimizer = optimizer
        self.supernet = supernet
        self.space = supernet.space
        self.sampling = _Sampling(supernet, sampler)
        self.own = own

    def sampled(self) -> Architecture:
        """Return the subnet of this update."""
        return self.sampling.trained()

    def complexity(self, measure: Literal["parameters", "macs"]) -> Complexity:
        """Return a table of the supernet."""
        if measure == "parameters":
            return self.supernet.subnet_parameters()
        return self.supernet.subnet_macs()

    def total_steps(self) -> int | None:
        """Return None: a script of timm's shape does not say."""
        return None

    def sampler(self) -> Sampler | None:
        """Return the sampler that was given; the default one draws uniformly."""
        return self.sampling.sampler if self.own else None


class Attached:
    """Dynamic training that is attached.

    Attributes:
        training: the `DynamicTraining`; `training.last` tells what the last update used.
    """

    def __init__(self, training: DynamicTraining, sampling: _Sampling) -> None:
        self.training = training
        self._sampling = sampling

    @property
    def drawn(self) -> Architecture | None:
        """The subnet of the current update; None ahead of the first."""
        return self._sampling.drawn

    def detach(self) -> None:
        """Stop: the supernet computes the activated subnet in training mode as well."""
        self.training.detach()
        self._sampling.stop()


class _Sampling:
    """Draws the subnet of each update, in the supernet's forward pass."""

    def __init__(self, supernet: Any, sampler: Sampler) -> None:
        self.supernet = supernet
        self.sampler = sampler
        self.drawn: dict[str, Hashable] | None = None
        self._drawn_for: int | None = None
        self._training: DynamicTraining | None = None
        self._loading: dict[str, Any] | None = None
        self._handles: list[Any] = []

    def start(self, training: DynamicTraining) -> None:
        self._training = training

        # Functions, not methods: a copy of the supernet, such as an EMA model, copies methods
        # along with the optimizer behind them.
        def choose(module: Any, args: tuple[Any, ...]) -> None:
            if module is self.supernet and module.training:
                if self._drawn_for != self._turn:
                    self.drawn = self._sample()
                    self._drawn_for = self._turn
                module._select(self.drawn)
            else:
                module._select(module.architecture)

        def save(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict[CHECKPOINT_KEY] = {
                "sampler": self.sampler.state_dict(),
                "drawn": self.drawn,
                "drawn_for": self._drawn_for,
            }

        def check(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            if CHECKPOINT_KEY not in state_dict:
                raise ValueError(
                    "the checkpoint has no state of the sampling: it was written without attach(). "
                    "Load it into the optimizer ahead of attach()"
                )
            self._loading = state_dict[CHECKPOINT_KEY]

        def load(optimizer: torch.optim.Optimizer) -> None:
            assert self._loading is not None
            saved, self._loading = self._loading, None
            self.sampler.load_state_dict(saved["sampler"])
            self.drawn, self._drawn_for = saved["drawn"], saved["drawn_for"]

        def step_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            # For what calls parts of the supernet, such as `forward_features`.
            self.supernet._select(self.supernet.architecture)

        optimizer = training.optimizer
        self._handles = [
            optimizer.register_step_post_hook(step_back),
            self.supernet.register_forward_pre_hook(choose),
            optimizer.register_state_dict_post_hook(save),
            optimizer.register_load_state_dict_pre_hook(check),
            optimizer.register_load_state_dict_post_hook(load),
        ]

    @property
    def _turn(self) -> int:
        # A subnet whose gradients are not finite would fail again: the next one takes its turn.
        assert self._training is not None
        return self._training.updates + self._training.skipped

    def trained(self) -> dict[str, Hashable]:
        if self.drawn is None or self._drawn_for != self._turn:
            raise RuntimeError(
                "no subnet has been drawn for this update: its loss does not come from a call of "
                "the supernet in training mode. Call supernet.train(), and the supernet itself, "
                "not parts of it such as forward_features"
            )
        return self.drawn

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.supernet._select(self.supernet.architecture)

    def _sample(self) -> dict[str, Hashable]:
        drawn = self.sampler.sample()
        if not isinstance(drawn, Mapping):
            raise TypeError(
                f"{type(self.sampler).__name__} drew a {type(drawn).__name__}; attach() needs a "
                "sampler of one subnet an update, such as UniformSampler"
            )
        self.supernet.space.validate(drawn)
        return dict(drawn)
