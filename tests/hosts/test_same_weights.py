"""One training in every host: the same weights, bit for bit, as by one optimizer a group."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_dynamic.evaluation import score_subnets
from nas_dynamic.search import Objective, RandomSearch, search
from tests.attach.reference import assert_identical
from tests.hosts.tiny import UPDATES, Supernet, Task, loss_of, reference

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("hosts")]

TASKS = {
    "plain": Task(),
    "accumulation": Task(accumulate=2),
    "clipping": Task(clip=0.05),
    "AMP": Task(bf16=True),
    "coasting": Task(options={"idle": "coast"}),
}


def in_lightning(package: str, **settings: Any) -> Callable[[Task, Path], Supernet]:
    def train(task: Task, folder: Path) -> Supernet:
        from tests.hosts import in_lightning

        return in_lightning.train(importlib.import_module(package), task, folder, **settings)

    return train


def in_transformers(task: Task, folder: Path) -> Supernet:
    from tests.hosts import in_transformers

    return in_transformers.train(task, folder)


def in_mmengine(task: Task, folder: Path) -> Supernet:
    from tests.hosts import in_mmengine

    return in_mmengine.train(task, folder)


def in_loop(name: str, package: str = "") -> Callable[[Task, Path], Supernet]:
    def train(task: Task, folder: Path) -> Supernet:
        from tests.hosts import in_loops

        loop = getattr(in_loops, name)
        if package:
            loop.package = importlib.import_module(package)
        return loop(task).train()

    return train


def in_timm(task: Task, folder: Path) -> Supernet:
    from tests.hosts import in_timm

    return in_timm.train(task)


def in_nni(task: Task, folder: Path) -> Supernet:
    from tests.hosts import in_nni

    return in_nni.train(task, folder)


HOSTS = {
    "plain": in_loop("Loop"),
    "Lightning": in_lightning("lightning.pytorch"),
    "pytorch_lightning": in_lightning("pytorch_lightning"),
    "transformers": in_transformers,
    "Accelerate": in_loop("AccelerateLoop"),
    "Fabric": in_loop("FabricLoop", "lightning.fabric"),
    "mmengine": in_mmengine,
    "NNI": in_nni,
    "timm": in_timm,
}


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    return {name: reference(task).state_dict() for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Supernet]:
    """(host, task) → the supernet that the host trained."""

    @functools.cache
    def train(host: str, task: str) -> Supernet:
        return HOSTS[host](TASKS[task], tmp_path_factory.mktemp("trained"))

    return train


REFUSED = {("mmengine", "AMP")}
"""What a host does on a GPU only; `test_mmengine.py` has its own words for that."""


@pytest.mark.parametrize(
    ("host", "task"), [(h, t) for h in HOSTS for t in TASKS if (h, t) not in REFUSED]
)
def test_every_host_trains_as_one_optimizer_a_group(
    host: str, task: str, references: dict[str, Any], trained: Callable[[str, str], Supernet]
):
    assert_identical(trained(host, task).state_dict(), references[task])


@pytest.mark.parametrize("host", HOSTS)
def test_what_a_host_has_trained_is_searched(host: str, trained: Callable[[str, str], Supernet]):
    """By the loss of each subnet: the best one is that of an evaluation of all by hand."""
    net = trained(host, "plain")
    batches = [*Task().loader()]

    def score(architectures: list[Any]) -> Any:
        for one in score_subnets(
            net, type(net).activate, architectures, batches, batch_norm="batch"
        ):
            yield {"loss": one.loss}

    result = search(net.space, score, [Objective("loss")], budget=60, strategy=RandomSearch())
    losses = {}
    for architecture in net.space:
        net.eval().activate(architecture)
        with torch.no_grad():
            losses[str(architecture)] = sum(loss_of(net, x, y) for x, y in batches).item()
    best = min(losses, key=losses.get)
    assert len(result.evaluations) == net.space.size
    assert str(result.best.architecture) == best


def test_the_tasks_differ(references: dict[str, Any]):
    weights = [weights["head.weight"] for weights in references.values()]
    assert not any((one == other).all() for one in weights for other in weights if one is not other)
    assert UPDATES == 50
