"""Hosts in which no scheduler sets the lr: the decay starts higher, so that the mean lr stays."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_dynamic.host.supernet_callback import SupernetCallback
from tests.hosts.tiny import LR, UPDATES, Task

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("hosts")]

TASK = Task(options={"gamma_by": "rank"})


def in_lightning(package: str) -> Callable[[Path], SupernetCallback]:
    def train(folder: Path) -> SupernetCallback:
        from tests.hosts import in_lightning as host

        callback = Recorded.of(host.DynamicSupernet)
        host.train(importlib.import_module(package), TASK, folder, callback=callback)
        return callback

    return train


def in_transformers(folder: Path) -> SupernetCallback:
    from tests.hosts import in_transformers as host

    callback = Recorded.of(host.DynamicSupernet)
    host.train(TASK, folder, callbacks=[callback])
    return callback


def in_mmengine(folder: Path) -> SupernetCallback:
    from nas_dynamic.adapters.mmengine import DynamicSupernetHook
    from tests.hosts import in_mmengine as host

    callback = Recorded.of(DynamicSupernetHook)
    host.train(TASK, folder, custom_hooks=[callback])
    return callback


class Recorded:
    """Notes the lr of each update."""

    @staticmethod
    def of(kind: Any) -> Any:
        class Callback(kind):  # type: ignore[misc]
            def start(self, *args: Any, **kwargs: Any) -> Any:
                host = super().start(*args, **kwargs)
                self.lrs: list[float] = []
                host.optimizer.register_step_post_hook(
                    lambda *_: self.lrs.append(host.training.last.lr[0])
                )
                return host

        return Callback(**TASK.dynamic)


@pytest.mark.parametrize(
    "train",
    [
        pytest.param(in_lightning("lightning.pytorch"), id="lightning"),
        pytest.param(in_lightning("pytorch_lightning"), id="pytorch_lightning"),
        pytest.param(in_transformers, id="transformers"),
        pytest.param(in_mmengine, id="mmengine"),
    ],
)
def test_the_mean_of_a_constant_lr_is_kept(train: Any, tmp_path: Path):
    callback = train(tmp_path)
    calr = callback.training.calr
    assert len(callback.lrs) == UPDATES
    assert callback.lrs[0] == pytest.approx(2 * LR, rel=0.03)
    # Over the subnets of the space and the updates: what the host's own constant lr is.
    space = callback.host.space
    subnets = [space.decode([a, b, c]) for a in range(3) for b in range(3) for c in range(3)]
    factors = torch.tensor([[calr.factor(s, t) for s in subnets] for t in range(UPDATES)])
    assert float(factors.mean()) == pytest.approx(1, abs=0.03)
