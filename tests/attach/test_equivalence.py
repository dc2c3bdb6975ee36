"""Hooks against one optimizer per group, to the bit, over every optimizer of torch and timm."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from tests.attach.optimizers import (
    CASES,
    IMPLEMENTATIONS,
    Case,
    document,
    refusal,
    weights_kept,
)
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    GAMMA_MAX,
    GAMMA_MIN,
    STEPS,
    Reference,
    assert_identical,
    backward,
    batches,
    complexity,
    make_model,
)

TOTAL_STEPS = STEPS + 10

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*decayed the lr"),
    pytest.mark.filterwarnings("ignore:.*keeps no state"),
    pytest.mark.filterwarnings("ignore:Using backward.* with create_graph"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.* before"),
]


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)


def exponential(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.ExponentialLR(optimizer, gamma=0.9)


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],
        total_steps=STEPS + 1,
        cycle_momentum=bool({"momentum", "betas"} & optimizer.defaults.keys()),
    )


CALR = CaLR(complexity, total_steps=TOTAL_STEPS, bounds=(C_MIN, C_MAX))


@dataclass(frozen=True)
class Host:
    """How a training loop drives its optimizer."""

    schedule: Callable[[torch.optim.Optimizer], Any]
    group_by: str | None
    closure: bool
    set_to_none: bool

    def __str__(self) -> str:
        return (
            f"{self.schedule.__name__}-{self.group_by}-"
            f"{'closure' if self.closure else 'direct'}-{'none' if self.set_to_none else 'zeros'}"
        )


HOSTS = [
    Host(one_cycle, "layer1", closure=True, set_to_none=True),
    Host(cosine, "layer1", closure=False, set_to_none=False),
    Host(exponential, None, closure=False, set_to_none=True),
]
ALL_HOSTS = [
    Host(*values)
    for values in itertools.product(
        (cosine, exponential, one_cycle), ("layer1", None), (True, False), (True, False)
    )
]
# An optimizer is tried once in a process: see nas_dynamic/attach/trial.py.
ONE_BY_ONE = [
    pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(case.name)) for case in CASES
]
THOROUGH = ("torch.SGD-nesterov-foreach", "torch.AdamW", "torch.Adam-fused", "timm.adan")


def identical_after_training(case: Case, idle: str, host: Host) -> None:
    here, there = make_model(case.model), make_model(case.model)
    optimizer = case.build(case.groups(here))
    scheduler = host.schedule(optimizer)
    sampled: dict[str, str] = {"layer1": "stale", "layer2": "stale"}
    dynamic = DynamicTraining(
        optimizer,
        architecture=lambda: sampled,
        calr=CaLR(
            complexity,
            total_steps=TOTAL_STEPS,
            bounds=(C_MIN, C_MAX),
            gamma_max=GAMMA_MAX,
            gamma_min=GAMMA_MIN,
        ),
        momentum=MomentumSeparation(host.group_by) if host.group_by else None,
        idle=idle,
    )
    second_order = getattr(optimizer, "is_second_order", False)
    torch.default_generator.manual_seed(2)
    for x, y, architecture in batches():

        def closure(x=x, y=y, architecture=architecture) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=host.set_to_none)
            sampled.update(architecture)
            return backward(here, x, y, sampled, second_order)

        if host.closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        scheduler.step()
    assert dynamic.updates == STEPS

    reference = Reference(
        case.build,
        case.groups(there),
        lambda architecture: architecture.get(host.group_by),
        host.schedule,
        idle,
    )
    torch.default_generator.manual_seed(2)
    for step, (x, y, architecture) in enumerate(batches()):
        backward(there, x, y, architecture, second_order)
        reference.update(architecture, step, TOTAL_STEPS)

    assert_identical(here.state_dict(), there.state_dict(), "weights")
    for scheduled, group in zip(
        reference.scheduled.param_groups, optimizer.param_groups, strict=True
    ):
        assert scheduled["lr"] == group["lr"]
    states = optimizer.state_dict()["dynamic_training"]["groups"]
    groups = states["groups"] if states else [[None, optimizer.state_dict()["state"], None]]
    assert {group for group, _, _ in groups} == reference.optimizers.keys()
    for group, state, counters in groups:
        expected = reference.optimizers[group].state_dict()
        assert_identical(state, expected["state"], f"state of {group!r}")
        for written, param_group in zip(counters or [], expected["param_groups"], strict=False):
            for key, value in written.items():
                assert_identical(value, param_group[key], f"{key} of {group!r}")
        if counters is not None:
            new = expected["param_groups"][0].keys() - reference.first.param_groups[0].keys()
            assert counters[0].keys() >= new


@pytest.fixture(autouse=True)
def _eager():
    # Kron compiles its formulas; compiled they are the same, and half a minute slower.
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_every_optimizer(case: Case, idle: str):
    if case.unbuildable:
        pytest.skip(f"cannot be built here: {case.unbuildable}")
    optimizer = case.build(case.groups(make_model(case.model)))
    if reason := refusal(optimizer, idle):
        with pytest.raises(ValueError, match=re.escape(reason)):
            DynamicTraining(optimizer, architecture=dict, calr=CALR, idle=idle)
        return
    hosts = HOSTS[:1] if case.name.endswith(IMPLEMENTATIONS) else HOSTS
    if kept := weights_kept(optimizer):
        separate = MomentumSeparation("layer1")
        with pytest.raises(ValueError, match=f"keeps a copy of the weights in its state, '{kept}'"):
            DynamicTraining(optimizer, architecture=dict, momentum=separate, idle=idle)
        hosts = [host for host in HOSTS if host.group_by is None]
    for host in hosts:
        identical_after_training(case, idle, host)


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("host", ALL_HOSTS, ids=str)
@pytest.mark.parametrize("name", THOROUGH)
def test_every_host_loop(name: str, host: Host, idle: str):
    case = next(case for case in CASES if case.name == name)
    identical_after_training(case, idle, host)


def test_the_documented_table_is_the_tested_one():
    """Rows of what cannot be built here are another machine's to check."""
    path = Path(__file__).parents[2] / "docs" / "optimizers.md"
    rows = {line.split("|")[1]: line for line in path.read_text().splitlines() if "| `" in line}
    here = {line.split("|")[1]: line for line in document().splitlines() if "| `" in line}
    untested = "| not tested |"
    for name, line in here.items():
        assert name in rows, f"{name} is not listed: python -m tests.attach.optimizers"
        assert untested in line or untested in rows[name] or rows[name] == line
