"""Any order of calls equals the slow reference; damaged state and configurations are refused."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.attach.state_dict import CHECKPOINT_KEY
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    Mixed,
    assert_identical,
    backward,
    batches,
    calr_factor,
    coast,
    complexity,
    make_model,
    param_groups,
)

OPTIMIZERS: dict[str, Any] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adamw": torch.optim.AdamW,
    "fused adamw": functools.partial(torch.optim.AdamW, fused=True),
}
LR, TOTAL_STEPS = 0.01, 100
BATCHES = batches(6)
NUMBERS = st.integers(0, len(BATCHES) - 1)


def build(optimizer: str, model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[optimizer](param_groups(model, LR, 0.05), lr=LR)


def schedule(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


class Replay:
    """What a list of events comes to, with one optimizer a group and the formulas written out."""

    def __init__(self, optimizer: str, idle: str, events: list[Any]) -> None:
        self.name, self.idle = optimizer, idle
        self.model = make_model(Mixed)
        self.plain = build(optimizer, self.model)  # between detaching and attaching
        self.scheduled = build(optimizer, make_model(Mixed))
        self.scheduler = schedule(self.scheduled)
        self.groups: dict[str, torch.optim.Optimizer] = {}
        self.steps = 0
        for kind, *arguments in events:
            getattr(self, kind)(*arguments)

    def update(self, number: int) -> None:
        architecture = BATCHES[number][2]
        group = architecture["layer1"]
        if group not in self.groups:
            self.groups[group] = build(self.name, self.model)
            self.groups[group].load_state_dict(copy.deepcopy(self.origin))
        self.last = self.groups[group]
        self._step(self.last, number, calr_factor(architecture, self.steps, TOTAL_STEPS))
        self.steps += 1

    def plain_update(self, number: int) -> None:
        self._step(self.last, number, None)

    def attach(self) -> None:
        self.last = self.__dict__.get("last", self.plain)
        self.origin = copy.deepcopy(self.last.state_dict())
        self.groups, self.steps = {}, 0
        self.trained = {p for p in self.model.parameters() if p.grad is not None}

    def next_lr(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer of the stand-ins never steps
            self.scheduler.step()

    def _step(self, optimizer: torch.optim.Optimizer, number: int, factor: float | None) -> None:
        x, y, architecture = BATCHES[number]
        self.model.zero_grad()
        backward(self.model, x, y, architecture, graph=False)
        if factor is not None and self.idle == "coast":
            coast(self.model.parameters(), self.trained)
        for here, scheduled in zip(
            optimizer.param_groups, self.scheduled.param_groups, strict=True
        ):
            here["lr"] = scheduled["lr"] * (1.0 if factor is None else factor)
        optimizer.step()


class Calls(RuleBasedStateMachine):
    """A loop that does what hosts and users do, in any order."""

    @initialize(
        optimizer=st.sampled_from(list(OPTIMIZERS)), idle=st.sampled_from(["coast", "freeze"])
    )
    def start(self, optimizer: str, idle: str) -> None:
        self.name, self.idle = optimizer, idle
        self.model = make_model(Mixed)
        self.optimizer = build(optimizer, self.model)
        self.scheduler = schedule(self.optimizer)
        self.events: list[Any] = []
        self.sampled: dict[str, str] | None = None
        self.attach()
        self.save()

    def attach(self) -> None:
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.sampled,
            calr=CaLR(complexity, total_steps=TOTAL_STEPS, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1"),
            idle=self.idle,
            nonfinite="skip",
        )
        self.skipped = 0
        self.events.append(["attach"])

    @rule(plain=st.lists(NUMBERS, max_size=2))
    def detach_and_attach(self, plain: list[int]) -> None:
        self.dynamic.detach()
        assert not self.optimizer._optimizer_step_pre_hooks
        assert CHECKPOINT_KEY not in self.optimizer.state_dict()
        for number in plain:
            self.backward(number)
            self.optimizer.step()
            self.events.append(["plain_update", number])
        self.attach()

    def backward(self, number: int, bad: float | None = None) -> torch.Tensor:
        x, y, self.sampled = BATCHES[number]
        self.optimizer.zero_grad()
        loss = backward(self.model, x, y, self.sampled, graph=False)
        if bad is not None:
            self.model.stem.weight.grad[0, 0, 0, 0] = bad
        return loss

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=4), closure=st.booleans())
    def update(self, numbers: list[int], closure: bool) -> None:
        for number in numbers:
            if closure:
                self.optimizer.step(functools.partial(self.backward, number))
            else:
                self.backward(number)
                self.optimizer.step()
            self.events.append(["update", number])

    @rule(number=NUMBERS, inf=st.booleans())
    def scaled_update(self, number: int, inf: bool) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        x, y, self.sampled = BATCHES[number]
        self.optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(self.model(x, self.sampled), y)).backward()
        if inf:
            self.model.head.bias.grad[0] = float("inf")
        scaler.step(self.optimizer)
        if not inf:
            self.events.append(["update", number])

    @rule(number=NUMBERS, bad=st.sampled_from([float("nan"), float("-inf")]))
    def step_that_is_not_finite(self, number: int, bad: float) -> None:
        self.backward(number, bad)
        self.optimizer.step()
        self.skipped += 1

    @rule()
    def step_without_gradient(self) -> None:
        self.optimizer.zero_grad()
        self.optimizer.step()

    @rule(number=NUMBERS)
    def step_that_raises(self, number: int) -> None:
        self.backward(number)
        self.sampled = None
        with pytest.raises(RuntimeError, match="no architecture"):
            self.optimizer.step()

    @rule(number=NUMBERS)
    def closure_that_raises(self, number: int) -> None:
        def closure() -> None:
            self.backward(number)
            raise ArithmeticError

        with pytest.raises(ArithmeticError):
            self.optimizer.step(closure)

    @rule()
    def next_lr(self) -> None:
        self.scheduler.step()
        self.events.append(["next_lr"])

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=3))
    def update_and_save(self, numbers: list[int]) -> None:
        self.update(numbers, closure=False)
        self.save()

    def save(self) -> None:
        training = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        self.saved = copy.deepcopy(training | {"events": self.events, "skipped": self.skipped})

    @rule(new_process=st.booleans())
    def load(self, new_process: bool) -> None:
        if new_process:
            self.dynamic.detach()
            self.model = make_model(Mixed)
            self.optimizer = build(self.name, self.model)
            self.scheduler = schedule(self.optimizer)
            self.attach()
        saved = copy.deepcopy(self.saved)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.events, self.skipped = saved["events"], saved["skipped"]

    @rule()
    def load_of_another_training(self) -> None:
        before = copy.deepcopy(self.optimizer.state_dict())
        other = copy.deepcopy(before)
        other[CHECKPOINT_KEY]["definition"]["idle"] = "other"
        with pytest.raises(ValueError, match="idle is other in the checkpoint"):
            self.optimizer.load_state_dict(other)
        assert_identical(self.optimizer.state_dict(), before)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "dynamic"):
            attached = max(i for i, event in enumerate(self.events) if event == ["attach"])
            made = sum(event[0] == "update" for event in self.events[attached:])
            assert (self.dynamic.updates, self.dynamic.skipped) == (made, self.skipped)

    def teardown(self) -> None:
        if not hasattr(self, "dynamic"):
            return
        expected = Replay(self.name, self.idle, self.events)
        assert_identical(self.model.state_dict(), expected.model.state_dict())
        lrs, lrs_expected = (
            [group["lr"] for group in optimizer.param_groups]
            for optimizer in (self.optimizer, expected.scheduled)
        )
        assert lrs == lrs_expected
        groups = self.optimizer.state_dict()[CHECKPOINT_KEY]["groups"]["groups"]
        opened = {group: state for group, state, _ in groups}
        assert_identical(opened, {g: o.state_dict()["state"] for g, o in expected.groups.items()})
        self.dynamic.detach()


TestCalls = pytest.mark.filterwarnings(
    "ignore:.*decayed the lr", "ignore:step .* is skipped", "ignore:.*lr_scheduler.step"
)(Calls.TestCase)
TestCalls.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just({7: []}),
    st.lists(st.integers(), max_size=3),
    st.builds(lambda: torch.ones(2)),
)


def places(value: Any, depth: int, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in nested dicts and lists, down to a depth."""
    found = [path] if path else []
    if depth and isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += places(value[key], depth - 1, (*path, key))
    return found


def trained(optimizer: str) -> Calls:
    calls = Calls()
    calls.start(optimizer, "coast")
    calls.update([0, 1, 2, 3], closure=False)
    return calls


@functools.cache
def sound_checkpoint(optimizer: str) -> dict[str, Any]:
    calls = trained(optimizer)
    state_dict = copy.deepcopy(calls.optimizer.state_dict())
    calls.dynamic.detach()
    return state_dict


@settings(max_examples=200, derandomize=True)
@given(data=st.data())
def test_damaged_state_is_refused_before_anything_changes(data: st.DataObject):
    optimizer = data.draw(st.sampled_from(["sgd", "adamw"]))
    damaged = copy.deepcopy(sound_checkpoint(optimizer))
    saved = damaged[CHECKPOINT_KEY]
    # Down to the state of each parameter, of which only the optimizer knows what it may be.
    path = data.draw(st.sampled_from(places(saved, 4)), label="place")
    *parents, last = path
    container = functools.reduce(lambda value, key: value[key], parents, saved)
    if data.draw(st.booleans(), label="remove"):
        del container[last]
    else:
        container[last] = data.draw(JUNK, label="junk")
    calls = trained(optimizer)
    before = copy.deepcopy(calls.optimizer.state_dict())
    state = calls.optimizer.state
    refusal = None
    try:
        calls.optimizer.load_state_dict(damaged)
    except ValueError as error:
        refusal = str(error)
    if refusal is None:  # sound by chance: another number of updates, a group less
        for number in range(min(2, TOTAL_STEPS - calls.dynamic.steps)):
            calls.update([number], closure=False)
        copy.deepcopy(calls.optimizer.state_dict())
    else:
        assert "the checkpoint is" in refusal or "the checkpoint was" in refusal
        assert calls.optimizer.state is state
        assert_identical(calls.optimizer.state_dict(), before)
    calls.dynamic.detach()
