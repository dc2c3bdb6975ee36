"""mmengine: `custom_hooks=[dict(type="DynamicSupernetHook", ...)]`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nas_dynamic._extras import extra
from nas_dynamic.attach import DynamicTraining
from nas_dynamic.host import Options, takes_options
from nas_dynamic.sampling import Sampler
from nas_dynamic.supernet_host import SupernetHost, find_supernet
from nas_dynamic.update_log import UpdateLog

with extra("mmengine"):
    from mmengine.hooks import Hook
    from mmengine.optim import OptimWrapper, OptimWrapperDict
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

__all__ = ["DynamicSupernetHook"]


@HOOKS.register_module()
class DynamicSupernetHook(Hook):
    """Trains the supernet of a `Runner`'s model dynamically, a subnet for each update.

    The supernet is the model or the part of it that has `space`, a `SearchSpace`, and `activate`;
    see `nas_dynamic.supernet_host.SupernetHost`. Each update trains a subnet that is drawn by a
    seed, the same on all ranks; the iterations of one update (`accumulative_counts`) train the
    same. The state of it all is in the optimizer's state, and so in the checkpoints of
    `CheckpointHook`. What the updates used goes to the message hub, and so to the log and the
    `vis_backends`, see `nas_dynamic.update_log`.

    In validation the supernet computes the subnet that was trained last, or one that you activate.

    Args:
        sampler: draws the subnet of each update; uniformly by default. One that draws several
            needs a model whose `train_step` sums the losses of `weighted_subnets`.
        seed: of the default sampler.
        options: see `nas_dynamic.host.Options`.

    Raises:
        TypeError: there is no such option.
        ValueError: an option is not what it may be.
    """

    priority = "NORMAL"  # before LoggerHook

    @takes_options
    def __init__(self, *, sampler: Sampler | None = None, seed: int = 0, **options: Any) -> None:
        self.options = Options.of(**options)
        self._sampler, self._seed = sampler, seed
        self.host: SupernetHost | None = None
        self._log: UpdateLog | None = None

    @property
    def training(self) -> DynamicTraining | None:
        """What is attached to the optimizer of the runner."""
        return None if self.host is None else self.host.training

    def weighted_subnets(self) -> Iterator[float]:
        """Have the supernet compute each subnet of this update in turn; yield its loss's weight.

        For a `train_step` or a `forward` whose update takes several subnets:

            loss = sum(w * self.loss_of(data) for w in hook.weighted_subnets())
        """
        assert self.host is not None, "weighted_subnets() is for training steps"
        return self.host.weighted_subnets()

    def before_run(self, runner: Runner) -> None:
        """Attach: the optimizer is built by now, and its state not yet restored."""
        built = runner.optim_wrapper  # not yet, or None, in a run without training
        if isinstance(built, OptimWrapperDict):
            wrappers = [*built.optim_wrappers.values()]
        else:
            wrappers = [built] if isinstance(built, OptimWrapper) else []
        if not wrappers:
            return
        supernet, optimizer = find_supernet(runner.model, [w.optimizer for w in wrappers])
        if self.host is not None and self.host.optimizer is optimizer:  # a test after the training
            return
        (wrapper,) = (w for w in wrappers if w.optimizer is optimizer)
        self.host = SupernetHost(
            supernet,
            optimizer,
            lambda: total_updates(runner, wrapper),
            sampler=self._sampler,
            seed=self._seed,
        )
        self.host.start(self.options)
        self._log = UpdateLog(self.host.training)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Draw the subnet of the update, or compute it again after a validation."""
        assert self.host is not None
        self.host.draw()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Hand on to the message hub what the update used."""
        assert self._log is not None
        self._log.add((outputs or {}).get("loss"))
        for name, value in (self._log.metrics() or {}).items():
            runner.message_hub.update_scalar(f"train/{name}", value)


def total_updates(runner: Runner, wrapper: OptimWrapper) -> int:
    """Return the number of updates that a runner will make: the last may have fewer iterations."""
    return math.ceil(int(runner.max_iters) / int(wrapper._accumulative_counts))
