"""A step that raises, at every call that it makes in turn: nothing is left half changed."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import nas_dynamic
from tests.attach.reference import assert_identical, batches, calr_factor
from tests.attach.test_training import LR, TOTAL_STEPS, Loop

OURS = str(Path(nas_dynamic.__file__).parent)
TORCHS = str(Path(torch.optim.__file__).with_name("sgd.py"))
LRS = [LR, LR / 2]


class OutOfMemory(MemoryError):
    """What is raised."""


class RaiseAt:
    """Raises at one of the calls of, or in, the files of a folder.

    Args:
        folder: beginning of the paths of the files.
        number: of the call, from 0; None for none.
        when: whether a call counts.
    """

    def __init__(
        self, folder: str, number: int | None, when: Callable[[], bool] = lambda: True
    ) -> None:
        self.folder, self.number, self.when, self.calls = folder, number, when, 0

    def __enter__(self) -> RaiseAt:
        sys.setprofile(self.profile)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def profile(self, frame: Any, event: str, argument: Any) -> None:
        ours = event in ("call", "c_call") and frame.f_code.co_filename.startswith(self.folder)
        if ours and self.when():
            self.calls += 1
            if self.calls - 1 == self.number:
                raise OutOfMemory(f"call {self.number}")


torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])  # from here on super().step() is hooked


class Marked(torch.optim.SGD):
    """Tells how far its own update has come."""

    reached = "before"

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        self.reached = "in"
        super().step()
        self.reached = "after"


OPTIMIZERS = {
    "single": functools.partial(Marked, momentum=0.9, nesterov=True, foreach=False),
    "foreach": functools.partial(Marked, momentum=0.9, nesterov=True, foreach=True),
}


def raised(optimizer: Any, context: RaiseAt, *arguments: Any) -> bool:
    optimizer.reached = "before"
    try:
        with context:
            optimizer.step(*arguments)
    except OutOfMemory:
        return True
    return False


def lrs(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("kind", "idle", "name"),
    [
        ("update", "coast", "foreach"),
        ("new group", "coast", "single"),
        ("update", "freeze", "single"),
        ("skipped", "freeze", "single"),
        ("closure", "coast", "single"),
    ],
)
@pytest.mark.filterwarnings("ignore:step .* is skipped")
def test_an_error_before_the_update_changes_nothing(kind: str, idle: str, name: str):
    phases: list[str] = []
    for number in range(2000):
        loop = Loop(OPTIMIZERS[name], idle=idle, nonfinite="skip")
        loop.train(3)
        x, y, architecture = batches(4)[3]
        if kind == "new group":
            architecture = architecture | {"layer1": unseen(loop)}
        loop.backward(x, y, architecture)
        if kind == "skipped":
            loop.model.head.bias.grad[0] = float("nan")
        before = loop.everything()
        gradients = {n: p.grad for n, p in loop.model.named_parameters()}
        closure = [lambda: None] if kind == "closure" else []
        if not raised(loop.optimizer, RaiseAt(OURS, number), *closure):
            break
        phases.append(loop.optimizer.reached)
        assert lrs(loop.optimizer) == LRS
        if phases[-1] == "before":
            assert all(p.grad is gradients[n] for n, p in loop.model.named_parameters())
            if kind != "skipped":
                assert_identical(loop.everything(), before)
    assert phases.count("before") > 40
    assert phases.count("after") > 4
    assert 0 < phases.count("in") < 10, "the hooks of super().step()"


@pytest.mark.parametrize("idle", ["coast", "freeze"])
def test_a_training_goes_on_after_errors_at_every_call(idle: str):
    """As in a loop that catches errors of memory, and tries the batch again."""
    troubled, untroubled = (Loop(OPTIMIZERS["single"], idle=idle) for _ in range(2))
    schedulers = [
        lr_scheduler.LambdaLR(loop.optimizer, lambda t: 1.0) for loop in (troubled, untroubled)
    ]
    failed = 0
    for batch in batches(4):
        for number in [*range(0, 90, 2), None]:
            troubled.backward(*batch)
            at = RaiseAt(OURS, number, lambda: troubled.optimizer.reached == "before")
            if not raised(troubled.optimizer, at):
                break
            failed += 1
        untroubled.backward(*batch)
        untroubled.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert failed > 60
    assert_identical(troubled.everything(), untroubled.everything())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("kind", ["new group", "known group"])
def test_an_error_in_the_update_leaves_the_weights_of_plain_torch(name: str, idle: str, kind: str):
    """The lr is back at once, before a scheduler looks; so are the group and the count."""
    for number in range(500):
        loop = Loop(OPTIMIZERS[name], idle=idle)
        loop.train(3)
        x, y, architecture = batches(4)[3]
        group = unseen(loop) if kind == "new group" else loop.dynamic.groups[0]
        loop.backward(x, y, architecture | {"layer1": group})
        scheduler = lr_scheduler.ExponentialLR(loop.optimizer, 0.5)
        plain = plain_twin(loop, group)
        state, groups = loop.optimizer.state, loop.dynamic.groups
        before = [group["lr"] for group in loop.optimizer.param_groups]
        gradients = {n: p.grad for n, p in loop.model.named_parameters()}
        fails = [raised(o, RaiseAt(TORCHS, number)) for o in (loop.optimizer, plain.optimizer)]
        assert fails[0] == fails[1]
        for here, there in zip(loop.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(here, there)
        if not fails[0]:
            break
        assert lrs(loop.optimizer) == before == LRS
        assert loop.optimizer.state is state
        assert (loop.dynamic.groups, loop.dynamic.updates) == (groups, 3)
        assert all(p.grad is gradients[n] for n, p in loop.model.named_parameters())
        with contextlib.suppress(UserWarning):
            scheduler.step()
        assert lrs(loop.optimizer) == [lr / 2 for lr in before]
    assert number > 8


def unseen(loop: Loop) -> str:
    """Return a candidate of the label that is grouped by, of which there was no update."""
    return next(candidate for candidate in "abc" if candidate not in loop.dynamic.groups)


def plain_twin(loop: Loop, group: str) -> Loop:
    """Plain torch at the coming update: the state of its group, its lr, its gradients."""
    twin = Loop(type(loop.optimizer), attach=False, **foreach_of(loop.optimizer))
    twin.model.load_state_dict(loop.model.state_dict())
    saved = copy.deepcopy(loop.optimizer.state_dict())
    states = {g: state for g, state, _ in saved["dynamic_training"]["groups"]["groups"]}
    twin.optimizer.load_state_dict(
        {"state": states.get(group, {}), "param_groups": saved["param_groups"]}
    )
    factor = calr_factor(loop.sampled, loop.dynamic.steps, TOTAL_STEPS)
    for param_group in twin.optimizer.param_groups:
        param_group["lr"] *= factor
    untrained = saved["dynamic_training"]["untrained"]
    pairs = zip(twin.model.parameters(), loop.model.parameters(), strict=True)
    for number, (here, there) in enumerate(pairs):
        if there.grad is not None:
            here.grad = there.grad.clone()
        elif loop.dynamic.idle == "coast" and number not in untrained:
            here.grad = torch.zeros_like(here)
    return twin


def foreach_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = ("momentum", "nesterov", "foreach")
    return {name: optimizer.param_groups[0][name] for name in names}
