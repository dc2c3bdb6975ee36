"""mmengine: `custom_hooks=[dict(type="DynamicSupernetHook", ...)]`."""

from __future__ import annotations

import math
from typing import Any

from nas_dynamic._extras import extra
from nas_dynamic.attach.innermost import innermost
from nas_dynamic.host.supernet_callback import SupernetCallback
from nas_dynamic.host.supernet_host import find_supernet

with extra("mmengine"):
    from mmengine.hooks import Hook
    from mmengine.optim import OptimWrapper, OptimWrapperDict
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

__all__ = ["DynamicSupernetHook"]


@HOOKS.register_module()
class DynamicSupernetHook(SupernetCallback, Hook):
    """Trains the supernet of a `Runner`'s model dynamically, a subnet for each update.

    The supernet is the model or the part of it that has `space`, a `SearchSpace`, and `activate`;
    see `SupernetHost`. Each update trains a subnet that is drawn by a
    seed, the same on all ranks; the iterations of one update (`accumulative_counts`) train the
    same. The state of it all is in the optimizer's state, and so in the checkpoints of
    `CheckpointHook`. What the updates used goes to the message hub, and so to the log and the
    `vis_backends`, see `nas_dynamic.host.update_log`.

    In validation the supernet computes the subnet that was trained last, or one that you activate.

    Args and errors are those of `nas_dynamic.host.supernet_callback.SupernetCallback`.
    """

    priority = "NORMAL"  # before LoggerHook

    def before_run(self, runner: Runner) -> None:
        """Attach: the optimizer is built by now, and its state not yet restored."""
        built = runner.optim_wrapper  # not yet, or None, in a run without training
        if isinstance(built, OptimWrapperDict):
            wrappers = [*built.optim_wrappers.values()]
        else:
            wrappers = [built] if isinstance(built, OptimWrapper) else []
        if not wrappers:
            return
        optimizers = [innermost(wrapper.optimizer) for wrapper in wrappers]
        _, optimizer = find_supernet(runner.model, optimizers)
        if self.host is not None and self.host.optimizer is optimizer:  # a test after the training
            return
        wrapper = wrappers[optimizers.index(optimizer)]
        self.start(
            runner.model,
            [optimizer],
            lambda: total_updates(runner, wrapper),
            has_scheduler=lambda optimizer: bool(runner.param_schedulers),
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Draw the subnet of the update, or compute it again after a validation."""
        self.draw()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Hand on to the message hub what the update used."""
        assert self.log is not None
        self.log.add((outputs or {}).get("loss"))
        for name, value in (self.log.metrics() or {}).items():
            runner.message_hub.update_scalar(f"train/{name}", value)


def total_updates(runner: Runner, wrapper: OptimWrapper) -> int:
    """Return the number of updates that a runner will make: the last may have fewer iterations."""
    return math.ceil(int(runner.max_iters) / int(wrapper._accumulative_counts))
