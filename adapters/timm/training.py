"""`attach(optimizer, supernet)`: dynamic training in a script of the shape of timm's train.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from timm.utils import unwrap_model
from torch import nn

from nas_dynamic.adapters.timm.supernet import Supernet
from nas_dynamic.attach import DynamicTraining
from nas_dynamic.complexity import Complexity
from nas_dynamic.host import Host, Options, takes_options
from nas_dynamic.host import attach as attach_host
from nas_dynamic.sampling import Sampler, UniformSampler
from nas_dynamic.space import Architecture

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

    Goes after `create_optimizer_v2`, before resuming, EMA and `DistributedDataParallel`. From
    then on a subnet is drawn at the first forward pass in training mode of every update, and
    `supernet.sampled` is that subnet until the optimizer has stepped, so that accumulated
    micro-batches train one subnet. A step that GradScaler skips is no update. In evaluation mode
    the supernet computes the subnet that was activated by `supernet.activate`, at first the one
    that it was made from: validation then scores that one, in the EMA model as well.

    The optimizer's `state_dict` holds the state of the sampling with that of the training, so
    that a checkpoint of timm's `CheckpointSaver` resumes exactly. All ranks draw the same
    subnets by the seed.

    Args:
        optimizer: of the supernet's weights.
        supernet: made by `fuse`, `mobile_supernet` or `elastic_vit`. Of a model that has one as
            its backbone, the backbone.
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
    if not isinstance(supernet, Supernet):
        inside = [path for path, module in supernet.named_modules() if isinstance(module, Supernet)]
        remedy = "make one by fuse(), mobile_supernet() or elastic_vit()"
        if inside:
            remedy = f"its part {inside[0]!r} is one: give that, with the optimizer of the whole"
        raise TypeError(f"{type(supernet).__name__} is no supernet of this adapter; {remedy}")
    curve = curve or ("scheduler" if total_steps is None else "polynomial")
    given = Options.of(total_steps=total_steps, curve=curve, **options)
    host = _Host(optimizer, supernet, sampler, seed)
    host.start(attach_host(host, given))
    return Attached(host)


class Attached:
    """Dynamic training that is attached; what it trains now is `supernet.sampled`.

    Attributes:
        training: the `DynamicTraining`; `training.last` says what the last update used.
    """

    def __init__(self, host: _Host) -> None:
        self.training = host.training
        self._host = host

    def detach(self) -> None:
        """Stop: the supernet computes the activated subnet in training mode as well."""
        self.training.detach()
        self._host.stop()


class _Host(Host):
    """A supernet whose forward pass draws the subnet of each update."""

    training: DynamicTraining

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        supernet: Supernet,
        sampler: Sampler | None,
        seed: int,
    ) -> None:
        self.optimizer = optimizer
        self.supernet = supernet
        self.space = supernet.space
        self._given_sampler = sampler
        self._sampler = UniformSampler(supernet.space, seed) if sampler is None else sampler
        self._sampled_for: int | None = None
        self._loading: dict[str, Any] = {}

    def sampled(self) -> Architecture:
        """Return the subnet of this update."""
        sampled = self.supernet.sampled
        if sampled is None or self._sampled_for != self._turn:
            raise RuntimeError(
                "no subnet has been drawn for this update: its loss does not come from a call of "
                "the supernet in training mode. Call supernet.train(), and the supernet itself, "
                "not parts of it such as forward_features"
            )
        return sampled

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
        return self._given_sampler

    def start(self, training: DynamicTraining) -> None:
        """Draw a subnet for each update from now on, and keep the sampling in checkpoints."""
        self.training = training

        # A function, not a method: a copy of the supernet, such as an EMA model, copies methods
        # along with the optimizer behind them.
        def draw(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module is self.supernet and module.training and self._sampled_for != self._turn:
                self.supernet.sampled = self._draw()
                self._sampled_for = self._turn

        self._handles = [
            self.supernet.register_forward_pre_hook(draw),
            self.optimizer.register_state_dict_post_hook(self._save),
            self.optimizer.register_load_state_dict_pre_hook(self._check),
            self.optimizer.register_load_state_dict_post_hook(self._load),
        ]

    def stop(self) -> None:
        """Draw no more subnets."""
        for handle in self._handles:
            handle.remove()
        self.supernet.sampled = None

    @property
    def _turn(self) -> int:
        # A subnet whose gradients are not finite would fail again: the next one takes its turn.
        return self.training.updates + self.training.skipped

    def _draw(self) -> Architecture:
        drawn = self._sampler.sample()
        if not isinstance(drawn, Mapping):
            raise TypeError(
                f"{type(self._sampler).__name__} drew a {type(drawn).__name__}; attach() needs a "
                "sampler of one subnet an update, such as UniformSampler"
            )
        return drawn

    def _save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict[CHECKPOINT_KEY] = {
            "sampler": self._sampler.state_dict(),
            "sampled": self.supernet.sampled,
            "sampled_for": self._sampled_for,
        }

    def _check(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        if CHECKPOINT_KEY not in state_dict:
            raise ValueError(
                "the checkpoint has no state of the sampling: it was written without attach(). "
                "Load it into the optimizer before attach()"
            )
        self._loading = state_dict[CHECKPOINT_KEY]

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        self._sampler.load_state_dict(self._loading["sampler"])
        self.supernet.sampled = self._loading["sampled"]
        self._sampled_for = self._loading["sampled_for"]
