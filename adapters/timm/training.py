"""`attach(optimizer, supernet)`: dynamic training in a script of the shape of timm's train.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from nas_dynamic.adapters.timm.supernet import Supernet
from nas_dynamic.host import Options, takes_options
from nas_dynamic.host.supernet_host import SupernetHost
from nas_dynamic.sampling import Sampler
from nas_dynamic.space import Architecture

__all__ = ["Attached", "attach"]


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
    """Train a supernet with CaLR, and momentum separation if asked for; draw its subnets.

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
        TypeError: the model is no supernet, or the sampler draws several subnets an update.
        ValueError: an option is illegal, or the optimizer cannot be attached to: Lookahead, LBFGS.
    """
    supernet = unwrap_model(supernet)
    if not isinstance(supernet, Supernet):
        inside = [path for path, module in supernet.named_modules() if isinstance(module, Supernet)]
        remedy = "make one by fuse(), mobile_supernet() or elastic_vit()"
        if inside:
            remedy = f"its part {inside[0]!r} is one: give that, with the optimizer of the whole"
        raise TypeError(f"{type(supernet).__name__} is no supernet of this adapter; {remedy}")
    given = Options.of_loop(total_steps=total_steps, curve=curve, **options)
    host = _Host(supernet, optimizer, sampler=sampler, seed=seed)
    if host.multi_subnet:
        raise TypeError(
            f"{type(sampler).__name__} draws several subnets an update; attach() needs a sampler "
            "of one, such as UniformSampler"
        )
    host.start(given)
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
        self._host.stop()


class _Host(SupernetHost):
    """A supernet whose forward pass draws the subnet of each update."""

    supernet: Supernet
    undrawn = (
        "its loss does not come from a call of the supernet in training mode. Call "
        "supernet.train(), and the supernet itself, not parts of it such as forward_features"
    )

    def start(self, options: Options) -> None:
        """Attach, and draw a subnet for each update from now on."""
        super().start(options)

        # A function, not a method: a copy of the supernet, such as an EMA model, copies methods
        # along with the optimizer behind them.
        def draw(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module is self.supernet and module.training:
                self.draw()

        self.on_stop(self.supernet.register_forward_pre_hook(draw).remove)

    def stop(self) -> None:
        """Draw no more subnets."""
        super().stop()
        self.supernet.sampled = None

    def _compute(self, subnet: Architecture) -> None:
        self.supernet.sampled = subnet
