"""Accelerate and Fabric as hosts: DynamicTraining on what they prepare, and their checkpoints."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_dynamic import DynamicTraining
from tests.attach.reference import assert_identical
from tests.hosts.in_loops import AccelerateLoop, FabricLoop, attached
from tests.hosts.tiny import Task, batches, fair_sampler, loss_of, reference_of_several

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("hosts")]

LOOPS = {
    "Accelerate": AccelerateLoop,
    "Fabric": type("Loop", (FabricLoop,), {"package": "lightning.fabric"}),
    "lightning_fabric": type("Loop", (FabricLoop,), {"package": "lightning_fabric"}),
}


def loop(host: str, task: Task) -> Any:
    kind = LOOPS[host]
    if isinstance(getattr(kind, "package", None), str):
        kind.package = importlib.import_module(kind.package)
    return kind(task)


@pytest.mark.parametrize("host", LOOPS)
def test_a_resumed_training_equals_an_unbroken_one(host: str, tmp_path: Path):
    task = Task(accumulate=2)
    whole = loop(host, task)
    whole.train(0, 17)
    whole.save(tmp_path)
    whole.train(17)
    resumed = loop(host, task)
    resumed.load(tmp_path)
    assert resumed.dynamic.updates == 17
    resumed.train(17)
    assert_identical(resumed.net.state_dict(), whole.net.state_dict())
    states = [training.optimizer.state_dict() for training in (resumed, whole)]
    assert_identical(*states)


@pytest.mark.parametrize("host", LOOPS)
def test_what_is_attached_to_is_the_innermost_optimizer(host: str):
    training = loop(host, Task())
    assert type(training.optimizer) is not torch.optim.SGD
    assert type(training.dynamic.optimizer) is torch.optim.SGD
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        DynamicTraining(training.optimizer, architecture=dict)


@pytest.mark.parametrize("host", LOOPS)
def test_several_subnets_an_update(host: str):
    training = loop(host, Task())
    training.dynamic.detach()
    net, subnets = training.net, []
    dynamic = attached(net, training.optimizer, lambda: subnets)
    sampler = fair_sampler(net)
    wrapped = getattr(training, "accelerator", None) or training.fabric
    for ((x, y),) in batches(Task()):
        subnets[:] = sampler.sample()
        training.optimizer.zero_grad()
        losses = []
        for subnet, weight in zip(subnets, dynamic.loss_weights(subnets), strict=True):
            net.activate(subnet)
            losses.append(weight * loss_of(training.model, x, y))
        wrapped.backward(sum(losses) / len(losses))
        training.optimizer.step()
    assert_identical(net.state_dict(), reference_of_several().state_dict())
