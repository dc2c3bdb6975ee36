"""A checkpoint continues to the bit in a new process, and one of another training is refused."""

from __future__ import annotations

import copy
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_dynamic import CaLR, ComplexityBins, DynamicTraining, MomentumSeparation, SearchSpace
from tests.attach.reference import C_MAX, C_MIN, CHOICES, assert_identical, complexity
from tests.attach.resume import CUT, END, OPTIMIZERS, SCHEDULES, Run

RUNS = [
    *(
        " ".join([*run, "label"])
        for run in itertools.product(OPTIMIZERS, ["coast", "freeze"], SCHEDULES)
    ),
    "adamw freeze cosine bins",
    "lamb coast one_cycle tuple",
]
# Attached after plain steps: groups that come later start from the state of those.
LATE = ["sgd-nesterov coast constant tuple late", "lamb freeze constant tuple late"]


def late(name: str, end: int) -> Run:
    run = Run(name, attach=False)
    run.train(0, 2)
    run.attach()
    run.train(2, end)
    return run


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Run → its end after a checkpoint that a new process continued from."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for name in RUNS:
        run = Run(name)
        run.train(0, CUT)
        torch.save(run.state_dict(), directory / f"{name}.cut")
    for name in LATE:
        torch.save(late(name, CUT).state_dict(), directory / f"{name}.cut")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.attach.resume", str(directory)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {path.stem: torch.load(path, weights_only=True) for path in directory.glob("*.end")}


@pytest.mark.process
@pytest.mark.xdist_group("resumed")
@pytest.mark.parametrize("name", RUNS)
def test_a_new_process_continues_to_the_bit(name: str, resumed: Mapping[str, Any]):
    straight = Run(name)
    straight.train(0, END)
    assert_identical(resumed[name], straight.state_dict())


@pytest.mark.process
@pytest.mark.xdist_group("resumed")
@pytest.mark.parametrize("name", LATE)
def test_groups_that_come_after_the_checkpoint_start_from_the_state_at_attachment(
    name: str, resumed: Mapping[str, Any]
):
    straight = late(name, END)
    saved = resumed[name]["optimizer"]["dynamic_training"]["groups"]["groups"]
    assert len(saved) > len(late(name, CUT).dynamic.groups)
    assert_identical(resumed[name], straight.state_dict())


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "adafactor"])
def test_going_back_to_a_checkpoint_in_memory(optimizer: str):
    run = Run(f"{optimizer} coast cosine label")
    run.train(0, CUT)
    saved = copy.deepcopy(run.state_dict())
    run.train(CUT, END)
    first = copy.deepcopy(run.state_dict())
    run.load_state_dict(copy.deepcopy(saved))
    assert run.dynamic.updates == CUT
    run.train(CUT, END)
    assert_identical(run.state_dict(), first)


def test_a_checkpoint_before_the_first_update():
    name = "adamw coast cosine label"
    fresh, run = Run(name), Run(name)
    run.train(0, CUT)
    run.load_state_dict(copy.deepcopy(fresh.state_dict()))
    run.train(0, END)
    fresh.train(0, END)
    assert_identical(run.state_dict(), fresh.state_dict())


def test_a_plain_optimizer_loads_the_state_of_the_last_group():
    run, plain = Run("adamw coast cosine label"), Run("adamw coast cosine label", attach=False)
    run.train(0, CUT)
    plain.load_state_dict(copy.deepcopy(run.state_dict()))
    assert_identical(plain.optimizer.state_dict()["state"], run.optimizer.state_dict()["state"])


class ReadsItsState(torch.optim.SGD):
    """Takes for granted, as pytorch_optimizer's SaRA, that a checkpoint has states."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **options)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["mask"] = torch.ones_like(p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["mask"] = self.state[p]["mask"].bool()


def test_an_optimizer_that_reads_its_state_when_it_loads_resumes():
    def made() -> tuple[torch.optim.Optimizer, DynamicTraining]:
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = ReadsItsState([weight], lr=0.1, momentum=0.9)
        return optimizer, attach(optimizer)

    (optimizer, _), (resumed, dynamic) = made(), made()
    for _ in range(3):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        optimizer.step()
    resumed.load_state_dict(optimizer.state_dict())
    assert dynamic.updates == 3
    assert_identical(resumed.state_dict()["state"], optimizer.state_dict()["state"])


def attach(optimizer: torch.optim.Optimizer, **changes: Any) -> DynamicTraining:
    """Attach with one definition, of which some entries are changed."""
    options: dict[str, Any] = {
        "complexity": complexity,
        "total_steps": 100,
        "bounds": (C_MIN, C_MAX),
        "space": SearchSpace(CHOICES),
        "momentum": MomentumSeparation("layer1"),
        "idle": "coast",
    } | changes
    outer = {key: options.pop(key) for key in ("space", "momentum", "idle")}
    calr = options.pop("calr", ...)
    return DynamicTraining(
        optimizer,
        architecture=lambda: dict.fromkeys((outer["space"] or SearchSpace(CHOICES)).labels, "a"),
        calr=CaLR(**options) if calr is ... else calr,
        **outer,
        check_sampled=False,  # the updates here are of any subnets
    )


OTHERS = {
    "space": (
        {"space": SearchSpace({**CHOICES, "layer2": ["a", "b", "z"]})},
        "space.layer2 is .* in the checkpoint and .*'z'.* here",
    ),
    "labels": ({"space": SearchSpace({**CHOICES, "layer3": ["a"]})}, "space.layer3 is None in"),
    "no space": ({"space": None}, "space is .* in the checkpoint and None here"),
    "group label": (
        {"momentum": MomentumSeparation("layer2")},
        "momentum.label is layer1 in the checkpoint and layer2 here",
    ),
    "group rule": (
        {"momentum": MomentumSeparation(ComplexityBins(complexity, edges=[4]))},
        "momentum.rule is None in the checkpoint and .*ComplexityBins here",
    ),
    "one momentum": ({"momentum": None}, "momentum is .* in the checkpoint and None here"),
    "gamma": ({"gamma_max": 2.0}, r"calr.gamma is \[0.25, 4.0\] in .* and \[0.5, 2.0\] here"),
    "bounds": ({"bounds": (1, 9)}, r"calr.bounds is \[2.0, 9.0\] in .* and \[1.0, 9.0\] here"),
    "curve": ({"curve": "cosine"}, "calr.curve is polynomial in the checkpoint and cosine here"),
    "total steps": ({"total_steps": 50}, "calr.total_steps is 100 in the checkpoint and 50 here"),
    "warm-up": ({"warmup_steps": 5}, "calr.warmup_steps is 0 in the checkpoint and 5 here"),
    "no CaLR": ({"calr": None}, "calr is .* in the checkpoint and None here"),
    "idle mode": ({"idle": "freeze"}, "idle is coast in the checkpoint and freeze here"),
}


def trained(changes: dict[str, Any] | None) -> Run:
    run = Run("adamw coast constant label", attach=False)
    if changes is not None:
        run.dynamic = attach(run.optimizer, **changes)
    run.train(0, CUT)
    return run


def refused(run: Run, checkpoint: dict[str, Any], message: str) -> None:
    before = copy.deepcopy(run.state_dict())
    state, updates = run.optimizer.state, run.dynamic.updates
    with pytest.raises(ValueError, match=message):
        run.optimizer.load_state_dict(checkpoint)
    assert run.optimizer.state is state
    assert run.dynamic.updates == updates
    assert_identical(run.state_dict(), before)
    run.train(0, CUT)  # and goes on


@pytest.mark.parametrize("kind", OTHERS)
def test_a_checkpoint_of_another_definition_is_refused(kind: str):
    changes, message = OTHERS[kind]
    refused(trained(changes), trained({}).optimizer.state_dict(), message)
    if kind != "idle mode":
        differing = re.escape(message.split()[0])
        refused(trained({}), trained(changes).optimizer.state_dict(), differing)


def test_a_checkpoint_after_param_groups_were_added_is_sound():
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters[:1], lr=0.1, momentum=0.9)
    sampled = {"layer": "a"}
    dynamic = DynamicTraining(
        optimizer, lambda: sampled, momentum=MomentumSeparation(group_by="layer")
    )

    def train(choices: str) -> None:
        for sampled["layer"] in choices:
            for parameter in parameters:
                parameter.grad = torch.ones(1)
            optimizer.step()

    train("ab")
    optimizer.add_param_group({"params": parameters[1:]})
    train("a")
    saved, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in parameters]
    train("ba")
    expected = [p.detach().clone() for p in parameters]
    optimizer.load_state_dict(saved)
    with torch.no_grad():
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.copy_(value)
    train("ba")
    assert_identical(list(parameters), expected)
    assert dynamic.updates == 5


def test_a_plain_checkpoint_is_refused():
    plain = trained(None).optimizer.state_dict()
    refused(trained({}), plain, "written without dynamic training; load it .* before")


@pytest.mark.parametrize(
    "peaks", [[], [math.nan], [0.01, math.inf], [0.01, -1.0], [0.01, 0.005, 0.01]], ids=repr
)
def test_damaged_peaks_of_the_lr_are_refused(peaks: list[float]):
    checkpoint = trained({"curve": "scheduler", "total_steps": None}).optimizer.state_dict()
    assert checkpoint["dynamic_training"]["peak_lrs"] == [0.01, 0.005]
    checkpoint["dynamic_training"]["peak_lrs"] = peaks
    run = trained({"curve": "scheduler", "total_steps": None})
    refused(run, checkpoint, r"damaged: dynamic_training\.peak_lrs is ")


def test_a_checkpoint_of_another_model_is_refused():
    other = trained({}).optimizer.state_dict()
    other["param_groups"].pop()
    refused(trained({}), other, "different number of parameter groups")


def test_all_differences_are_named_at_once():
    with pytest.raises(ValueError, match=r"idle is .*; calr\.curve is "):
        trained({"curve": "cosine", "idle": "freeze"}).optimizer.load_state_dict(
            trained({}).optimizer.state_dict()
        )
