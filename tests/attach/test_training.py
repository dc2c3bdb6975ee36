"""Attachment: what it restores, refuses and warns of, in the loops that hosts run."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn
from torch.optim import lr_scheduler

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, SearchSpace
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    CHOICES,
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

TOTAL_STEPS = 40
LR = 0.05


def make_calr(**changes: Any) -> CaLR:
    return CaLR(
        **{"complexity": complexity, "total_steps": TOTAL_STEPS, "bounds": (C_MIN, C_MAX)} | changes
    )


class Loop:
    """A supernet, its optimizer, and an attachment whose architecture the test sets."""

    def __init__(
        self,
        optimizer_class: Any = torch.optim.SGD,
        *,
        attach: bool = True,
        calr: CaLR | None = None,
        group_by: Any = "layer1",
        idle: str = "coast",
        space: SearchSpace | None = None,
        max_groups: int = 64,
        set_to_none: bool = True,
        nonfinite: str = "ignore",
        **options: Any,
    ) -> None:
        self.model = make_model(Mixed)
        if optimizer_class is torch.optim.SGD:
            options = {"momentum": 0.9} | options
        self.optimizer = optimizer_class(param_groups(self.model, LR, 0.05), lr=LR, **options)
        self.sampled: Any = None
        self.set_to_none = set_to_none
        self.dynamic = None
        if attach:
            self.attach(calr, group_by, idle, space, max_groups, nonfinite)

    def attach(
        self,
        calr: CaLR | None = None,
        group_by: Any = "layer1",
        idle: str = "coast",
        space: SearchSpace | None = None,
        max_groups: int = 64,
        nonfinite: str = "ignore",
        **options: Any,
    ) -> DynamicTraining:
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.sampled,
            calr=calr or make_calr(),
            momentum=MomentumSeparation(group_by, max_groups=max_groups) if group_by else None,
            idle=idle,
            space=space,
            nonfinite=nonfinite,
            **options,
        )
        return self.dynamic

    def backward(self, x: torch.Tensor, y: torch.Tensor, architecture: dict[str, str]) -> Any:
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        self.sampled = dict(architecture)
        return backward(self.model, x, y, self.sampled, graph=False)

    def train(self, steps: int = 6, start: int = 0) -> None:
        for batch in batches(start + steps)[start:]:
            self.backward(*batch)
            self.optimizer.step()

    def everything(self) -> dict[str, Any]:
        """Weights, state of all groups, hyperparameters and count, copied."""
        return copy.deepcopy(
            {"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        )


SCHEDULES = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.8),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=4),
            lr_scheduler.CosineAnnealingLR(o, T_max=10),
        ],
        milestones=[4],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, gamma=0.9), lr_scheduler.StepLR(o, step_size=3)]
    ),
}


@pytest.mark.filterwarnings("ignore:.*decayed the lr")
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_give_the_same_lr_with_and_without_attachment(name: str, tensor_lr: bool):
    def scheduled(attach: bool) -> list[list[float]]:
        loop = Loop(attach=False, foreach=False)
        if tensor_lr:
            for group in loop.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
        if attach:
            loop.attach()
        scheduler = SCHEDULES[name](loop.optimizer)
        seen = []
        for step, batch in enumerate(batches(12)):
            loop.backward(*batch)
            loop.optimizer.step()
            scheduler.step(*([1.0 + step % 3] if name == "plateau" else []))
            seen.append([float(group["lr"]) for group in loop.optimizer.param_groups])
        return seen

    assert scheduled(attach=True) == scheduled(attach=False)


@pytest.mark.parametrize("attach_first", [True, False])
def test_a_warm_up_of_the_scheduler_is_not_bent(attach_first: bool):
    loop = Loop(attach=False)
    calr = make_calr(curve="scheduler")
    if attach_first:
        loop.attach(calr)
    scheduler = SCHEDULES["sequential"](loop.optimizer)
    if not attach_first:
        loop.attach(calr)
    for step, batch in enumerate(batches(12)):
        lr = [group["lr"] for group in loop.optimizer.param_groups]
        loop.backward(*batch)
        loop.optimizer.step()
        gamma = calr.gamma(loop.sampled)
        if step <= 4:
            assert loop.dynamic.last.lr == tuple(lr)
        else:
            peak = [LR, LR / 2]
            bent = [p * (now / p) ** gamma for now, p in zip(lr, peak, strict=True)]
            assert loop.dynamic.last.lr == pytest.approx(bent, rel=1e-12)
        scheduler.step()


@pytest.mark.parametrize("idle", ["coast", "freeze"])
def test_lr_and_missing_gradients_are_restored(idle: str):
    loop = Loop(idle=idle)
    for x, y, architecture in batches(6):
        loop.backward(x, y, architecture)
        trained = {n for n, p in loop.model.named_parameters() if p.grad is not None}
        weights = copy.deepcopy(loop.model.state_dict())
        loop.optimizer.step()
        assert [group["lr"] for group in loop.optimizer.param_groups] == [LR, LR / 2]
        kept = {n for n, p in loop.model.named_parameters() if p.grad is not None}
        assert kept == trained, "a gradient norm may be logged after the step"
        if idle == "freeze":
            moved = {n for n, p in loop.model.named_parameters() if not torch.equal(p, weights[n])}
            assert moved <= trained


def test_last_tells_what_the_update_used():
    loop = Loop()
    for step, (x, y, architecture) in enumerate(batches(5)):
        loop.backward(x, y, architecture)
        loop.optimizer.step()
        last = loop.dynamic.last
        factor = calr_factor(architecture, step, TOTAL_STEPS)
        assert (last.step, last.architecture) == (step, architecture)
        assert (last.group, last.complexity) == (architecture["layer1"], complexity(architecture))
        assert last.factor == pytest.approx((factor, factor), rel=1e-12)
        assert last.lr == pytest.approx((LR * factor, LR / 2 * factor), rel=1e-12)
        loop.sampled["layer1"] = "changed by the host after the update"
        assert last.architecture == architecture


@pytest.mark.parametrize(
    "optimizer_class", [torch.optim.SGD, torch.optim.AdamW, timm.optim.Adan, timm.optim.Lamb]
)
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("updates_before", [0, 3])
def test_a_step_without_gradient_is_no_update(
    optimizer_class: Any, closure: bool, updates_before: int
):
    loop = Loop(optimizer_class)
    loop.train(updates_before)
    loop.optimizer.zero_grad()
    before = loop.everything()
    loop.sampled = None  # nothing is asked for where nothing was trained
    loop.optimizer.step(*([lambda: None] if closure else []))
    assert_identical(loop.everything(), before)
    assert loop.dynamic.updates == updates_before


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_grad_scaler_skips_is_no_update(optimizer_class: Any, fused: bool):
    def trained(inf_at: int | None) -> Loop:
        loop = Loop(optimizer_class, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
        for step, (x, y, architecture) in enumerate(batches(9)):
            for inject in [True, False] if step == inf_at else [False]:
                loop.optimizer.zero_grad()
                loop.sampled = architecture
                loss = nn.functional.cross_entropy(loop.model(x, architecture), y)
                scaler.scale(loss).backward()
                if inject:
                    loop.model.head.bias.grad[0] = float("inf")
                scaler.step(loop.optimizer)
                scaler.update()
        assert loop.dynamic.updates == 9
        return loop

    without = trained(None)
    # Step 0 opens the first group, and a power of two changes no bit of the unscaled gradients.
    for inf_at in (0, 5):
        skipped = trained(inf_at)
        assert_identical(skipped.everything(), without.everything())


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulated_and_clipped_gradients(idle: str, set_to_none: bool):
    """Three batches of one subnet an update, clipped, against the formula of SGD written out."""
    loop = Loop(idle=idle, set_to_none=set_to_none)
    expected = make_model(Mixed)
    momenta: dict[tuple[str, str], torch.Tensor] = {}
    trained: set[str] = set()
    for step, (x, y, architecture) in enumerate(batches(6)):
        loop.optimizer.zero_grad(set_to_none=set_to_none)
        expected.zero_grad()
        loop.sampled = architecture
        for part in x.tensor_split(2):
            for model in (loop.model, expected):
                backward(model, part, y[: len(part)], architecture, graph=False)
        for model in (loop.model, expected):
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        loop.optimizer.step()
        factor = calr_factor(architecture, step, TOTAL_STEPS)
        names = [name for name, _ in expected.named_parameters()]
        with torch.no_grad():
            for number, (name, p) in enumerate(expected.named_parameters()):
                trained |= set() if p.grad is None else {name}
                if p.grad is None and (idle == "freeze" or name not in trained):
                    continue
                lr, decay = (LR, 0.05) if number < len(names) // 2 else (LR / 2, 0.0)
                g = (0 if p.grad is None else p.grad) + decay * p
                key = (architecture["layer1"], name)
                momenta[key] = 0.9 * momenta[key] + g if key in momenta else g
                p -= lr * factor * momenta[key]
    for name, p in loop.model.named_parameters():
        torch.testing.assert_close(p, expected.get_parameter(name), msg=name)


def test_a_closure_that_raises_leaves_everything_as_it_was():
    loop, untroubled = Loop(), Loop()
    loop.train(4)
    before = loop.everything()

    def closure() -> torch.Tensor:
        loop.backward(*batches(5)[4])
        raise ArithmeticError("the loss is NaN")

    with pytest.raises(ArithmeticError):
        loop.optimizer.step(closure)
    assert_identical(loop.everything(), before)
    loop.train(4, start=4)
    untroubled.train(8)
    assert_identical(loop.everything(), untroubled.everything())


class Failing(torch.optim.SGD):
    """SGD whose update fails once, before it changes anything, where it is told to."""

    fails = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
        if self.fails:
            self.fails = False
            raise MemoryError("no memory for the update")
        return super().step()


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("afterwards", ["next batch", "state_dict"])
def test_an_optimizer_that_raises_can_go_on(idle: str, set_to_none: bool, afterwards: str):
    loop = Loop(Failing, momentum=0.9, idle=idle, set_to_none=set_to_none)
    untroubled = Loop(Failing, momentum=0.9, idle=idle, set_to_none=set_to_none)
    loop.train(4)
    loop.optimizer.fails = True
    loop.backward(*batches(12)[10])
    with pytest.raises(MemoryError):
        loop.optimizer.step()
    if afterwards == "state_dict":
        lrs = [group["lr"] for group in loop.optimizer.state_dict()["param_groups"]]
        assert lrs == [LR, LR / 2]
    if idle == "freeze":
        loop.optimizer.zero_grad()  # no update has dropped the gradients
    loop.train(6, start=4)
    untroubled.train(10)
    assert_identical(loop.model.state_dict(), untroubled.model.state_dict())
    assert loop.dynamic.updates == untroubled.dynamic.updates == 10


class Nested(torch.optim.SGD):
    """A subclass that calls the step of its parent, so that the step hooks run twice."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("idle", ["coast", "freeze"])
def test_a_subclass_that_calls_super_step_makes_one_update(closure: bool, idle: str):
    nested, plain = Loop(Nested, momentum=0.9, idle=idle), Loop(idle=idle)
    for loop in (nested, plain):
        for batch in batches(8):
            if closure:
                loop.optimizer.step(lambda loop=loop, batch=batch: loop.backward(*batch))
            else:
                loop.backward(*batch)
                loop.optimizer.step()
            gradients = {n for n, p in loop.model.named_parameters() if p.grad is not None}
            assert len(gradients) < len(list(loop.model.parameters()))
    assert_identical(nested.everything(), plain.everything())


class DecayedAfterwards(torch.optim.SGD):
    """Decoupled weight decay, by the lr of the update."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(1 - 0.1 * group["lr"])
        return loss


@pytest.mark.parametrize("closure", [True, False])
def test_what_a_subclass_does_after_super_step_is_of_the_update(closure: bool):
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # from here on torch hooks super().step()
    parameter = nn.Parameter(torch.ones(1))
    optimizer = DecayedAfterwards([parameter], lr=1.0)
    asked = []

    def architecture() -> dict[str, int]:
        asked.append(1)
        return {"width": 4}

    def backward() -> None:
        parameter.grad = torch.zeros(1)

    calr = CaLR(lambda a: a["width"], total_steps=10, bounds=(1, 16))
    dynamic = DynamicTraining(optimizer, architecture, calr=calr)
    expected = 1.0
    for step in range(8):
        if closure:
            optimizer.step(backward)
        else:
            backward()
            optimizer.step()
        expected *= 1 - 0.1 * calr.factor({"width": 4}, step)
        assert optimizer.param_groups[0]["lr"] == 1.0
    assert parameter.item() == pytest.approx(expected)
    assert len(asked) == dynamic.updates == 8


@pytest.mark.parametrize("hook", ["pre", "post"])
@pytest.mark.parametrize("registered", ["before", "after"])
def test_a_scheduler_may_step_in_a_hook(registered: str, hook: str):
    """One of the lr, and one of weight decay, which every group sees."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9, weight_decay=1.0)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    asked: list[dict[str, int]] = []

    def architecture() -> dict[str, int]:
        asked.append({"width": 1, "group": len(asked) % 2})
        return asked[-1]

    def schedule(*_: Any) -> None:
        scheduler.step()
        optimizer.param_groups[0]["weight_decay"] *= 0.5

    calr = CaLR(lambda a: a["width"], bounds=(1, 16), curve="scheduler")
    attach = functools.partial(
        DynamicTraining, optimizer, architecture, calr=calr, momentum=MomentumSeparation("group")
    )
    if registered == "after":
        dynamic = attach()
    getattr(optimizer, f"register_step_{hook}_hook")(schedule)
    if registered == "before":
        dynamic = attach()
    lrs = []
    for _ in range(4):
        parameter.grad = torch.ones(1)
        optimizer.step()
        lrs += dynamic.last.lr
    # Of a hook before the update the peak is what the lr is after it.
    peak = 1.0 if hook == "post" else 0.5
    assert lrs == pytest.approx([peak * 0.5 ** (4 * step) for step in range(4)])
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["weight_decay"] == 0.5**4


def test_param_groups_may_be_added_after_an_update_that_raised():
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = Failing(parameters[:1], lr=1.0, momentum=0.9)
    dynamic = DynamicTraining(
        optimizer,
        lambda: {"width": 1},
        calr=CaLR(lambda a: a["width"], total_steps=10, bounds=(1, 16)),
        momentum=MomentumSeparation("width"),
    )
    for fails in (False, True, False, False):
        optimizer.fails = fails
        parameters[0].grad = torch.ones(1)
        try:
            optimizer.step()
        except MemoryError:
            optimizer.add_param_group({"params": parameters[1:]})
    assert dynamic.updates == 3
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0]


def hooks(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    return {
        name: len(value)
        for name, value in vars(optimizer).items()
        if name.startswith("_optimizer_") and name.endswith("_hooks")
    }


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_a_copy_of_the_optimizer_is_made_and_cannot_be_stepped(copied: Any):
    """It would train on without dynamic training, with the momentum of one group."""
    loop = Loop()
    loop.train(3)
    before = loop.everything()
    twin = copied(loop.optimizer)
    for parameter in twin.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match="copied or unpickled from one with dynamic training"):
        twin.step()
    assert_identical(loop.everything(), before)
    loop.dynamic.detach()
    assert not hooks(copied(loop.optimizer))["_optimizer_step_pre_hooks"]


def test_a_copy_of_the_training_does_not_detach_it():
    """An average of the weights copies a module, and with it what the module keeps."""
    loop, untroubled = Loop(), Loop()
    loop.train(3)
    copied = copy.deepcopy([loop.model, loop.optimizer, loop.dynamic])
    copied[2].detach()
    loop.train(6, start=3)
    untroubled.train(9)
    assert_identical(loop.everything(), untroubled.everything())


def test_parameters_may_be_frozen_and_trained_again():
    """requires_grad_(False) is no sign of another subnet; frozen parameters do not coast."""
    loop = Loop(calr=make_calr(total_steps=200))
    frozen = [loop.model.stem.weight, loop.model.layer1["a"].weight]
    for start in (0, 40, 80):
        for parameter in frozen:
            parameter.requires_grad_(start != 40)
        before = [parameter.detach().clone() for parameter in frozen]
        loop.train(40, start=start)
        same = [torch.equal(p, old) for p, old in zip(frozen, before, strict=True)]
        assert same == [start == 40] * 2


def test_attaching_twice_is_refused_and_detaching_leaves_a_plain_optimizer():
    loop = Loop(attach=False)
    assert set(hooks(loop.optimizer).values()) == {0}
    loop.attach()
    attached = hooks(loop.optimizer)
    loop.train(5)
    before = loop.everything()
    with pytest.raises(ValueError, match=r"attached to this optimizer already; detach\(\)"):
        loop.attach()
    assert hooks(loop.optimizer) == attached
    assert_identical(loop.everything(), before)

    last_group = batches(5)[4][2]["layer1"]
    kept = {
        group: state
        for group, state, _ in before["optimizer"]["dynamic_training"]["groups"]["groups"]
    }[last_group]
    loop.dynamic.detach()
    assert set(hooks(loop.optimizer).values()) == {0}
    assert "dynamic_training" not in loop.optimizer.state_dict()
    assert_identical(loop.optimizer.state_dict()["state"], kept)

    plain = Loop(attach=False)
    plain.model.load_state_dict(loop.model.state_dict())
    plain.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    loop.train(3, start=5)
    plain.train(3, start=5)
    assert_identical(loop.everything(), plain.everything())
    detached = loop.dynamic
    loop.attach()  # a second time, after detaching
    detached.detach()  # once more, such as in a finally clause
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        loop.attach()


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_parameters_coast_from_their_first_training_on_also_after_a_checkpoint(
    optimizer_class: Any,
):
    def train(loop: Loop, layer1: str) -> torch.Tensor:
        x, y, _ = batches(1)[0]
        loop.backward(x, y, {"layer1": layer1, "layer2": "a"})
        loop.optimizer.step()
        return loop.model.layer1["b"][0].weight.detach().clone()

    first = Loop(optimizer_class)
    initial = first.model.layer1["b"][0].weight.detach().clone()
    assert torch.equal(train(first, "a"), initial)
    loop = Loop(optimizer_class)
    loop.model.load_state_dict(first.model.state_dict())
    loop.optimizer.load_state_dict(first.optimizer.state_dict())
    assert torch.equal(train(loop, "a"), initial), "none of its updates has decayed it"
    trained = train(loop, "b")
    again = Loop(optimizer_class)
    again.model.load_state_dict(loop.model.state_dict())
    again.optimizer.load_state_dict(loop.optimizer.state_dict())
    for resumed in (loop, again):
        assert not torch.equal(train(resumed, "a"), trained)
    # A checkpoint that does not say it is of a training in which all coasted from the start.
    saved = first.optimizer.state_dict()
    del saved["dynamic_training"]["untrained"]
    old = Loop(optimizer_class)
    old.optimizer.load_state_dict(saved)
    assert not torch.equal(train(old, "a"), initial)


@pytest.mark.parametrize(
    "optimizer_class", [torch.optim.SGD, torch.optim.AdamW, timm.optim.Adan, timm.optim.Lamb]
)
def test_attached_after_plain_steps_every_group_starts_from_that_state(optimizer_class: Any):
    loop = Loop(optimizer_class, attach=False)
    loop.train(4)
    origin = copy.deepcopy(loop.optimizer.state_dict())
    reference = make_model(Mixed)
    reference.load_state_dict(loop.model.state_dict())
    optimizers: dict[str, torch.optim.Optimizer] = {}
    pairs = list(zip(reference.parameters(), loop.model.parameters(), strict=True))
    trained = {here for here, there in pairs if there.grad is not None}
    loop.attach()
    loop.train(8, start=4)
    for step, (x, y, architecture) in enumerate(batches(12)[4:]):
        group = architecture["layer1"]
        if group not in optimizers:
            options = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
            optimizers[group] = optimizer_class(param_groups(reference, LR, 0.05), lr=LR, **options)
            optimizers[group].load_state_dict(copy.deepcopy(origin))
        reference.zero_grad()
        backward(reference, x, y, architecture, graph=False)
        for lr, param_group in zip((LR, LR / 2), optimizers[group].param_groups, strict=True):
            param_group["lr"] = lr * calr_factor(architecture, step, TOTAL_STEPS)
        coast(reference.parameters(), trained)
        optimizers[group].step()
    assert_identical(loop.model.state_dict(), reference.state_dict())
    saved = loop.optimizer.state_dict()["dynamic_training"]["groups"]["groups"]
    for group, state, counters in saved:
        expected = optimizers[group].state_dict()
        assert_identical(state, expected["state"])
        for here, there in zip(counters, expected["param_groups"], strict=True):
            assert_identical(here, {key: there[key] for key in here})


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW, timm.optim.Adan])
def test_a_param_group_may_be_added_after_attachment(optimizer_class: Any):
    def trained(add_at: int) -> Loop:
        loop = Loop(optimizer_class, attach=False)
        head = list(loop.model.head.parameters())
        second = loop.optimizer.param_groups[1]
        second["params"] = [p for p in second["params"] if all(p is not h for h in head)]
        loop.attach()
        for step, batch in enumerate(batches(10)):
            if step == add_at:
                loop.optimizer.add_param_group({"params": head, "lr": 0.01})
            loop.backward(*batch)
            loop.optimizer.step()
        return loop

    late, early = trained(add_at=4), trained(add_at=0)
    assert late.dynamic.updates == 10
    assert len(late.dynamic.last.lr) == 3
    start = make_model(Mixed)
    assert not torch.equal(late.model.head.weight, start.head.weight)
    assert not torch.equal(late.model.head.weight, early.model.head.weight)


def only_warning(kind: str, loop: Loop, steps: int = 4) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.train(steps)
    assert [str(w.message) for w in caught if kind in str(w.message)], kind
    assert len(caught) == 1, "each warning is given once"


def test_warns_of_an_optimizer_without_momentum():
    only_warning("SGD(…, momentum=0.9)", Loop(momentum=0.0))


def test_warns_of_an_lr_that_is_decayed_twice():
    loop = Loop()
    loop.train(1)
    loop.optimizer.param_groups[1]["lr"] *= 0.5
    only_warning("CaLR(curve='scheduler')", loop)


def test_a_param_group_that_is_not_trained_is_not_one_that_decays():
    loop = Loop()
    loop.optimizer.param_groups[1]["lr"] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.train(3)


def test_warns_of_a_complexity_outside_the_bounds_and_takes_the_nearer_gamma():
    loop = Loop(calr=make_calr(bounds=(4.5, 5.5)))
    only_warning("outside CaLR's bounds (4.5, 5.5)", loop, steps=8)
    assert loop.dynamic.last.gamma in (4.0, 0.25)


def test_a_sound_configuration_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Loop().train(8)
        loop = Loop(calr=make_calr(curve="scheduler"), idle="freeze")
        scheduler = lr_scheduler.ExponentialLR(loop.optimizer, 0.99)
        for step in range(8):
            loop.train(1, start=step)
            scheduler.step()


GROUPS_OF_FOUR_STEPS = len({architecture["layer1"] for _, _, architecture in batches(4)})

BAD_UPDATES = {
    "no architecture": ({}, None, "no architecture at the update"),
    "unknown label": ({"group_by": "layer9"}, {}, "no choice 'layer9' to group by; labels are"),
    "label of another space": (
        {"space": SearchSpace(CHOICES)},
        {"layer3": "a"},
        "has a choice 'layer3' that the space does not; labels are 'layer1', 'layer2'",
    ),
    "unknown candidate": (
        {"space": SearchSpace(CHOICES)},
        {"layer1": "z"},
        "'z' is not a candidate of 'layer1'; candidates are 'a', 'b', 'c'",
    ),
    "NaN complexity": (
        {"calr": make_calr(complexity=lambda a: float("nan"))},
        {},
        "positive finite number, got nan",
    ),
    "negative complexity": ({"calr": make_calr(complexity=lambda a: -3)}, {}, "got -3.0"),
    "zero complexity": ({"calr": make_calr(complexity=lambda a: 0)}, {}, "got 0.0"),
    "step beyond T": ({"calr": make_calr(total_steps=4)}, {}, "all 4 steps"),
    "too many groups": (
        {"group_by": lambda a: a.get("new", a["layer1"]), "max_groups": GROUPS_OF_FOUR_STEPS},
        {"new": "x"},
        "would be group number",
    ),
    "group that cannot be saved": (
        {"group_by": lambda a: a.get("new", "one")},
        {"new": torch.float32},
        "so that it can be saved",
    ),
    "a mixture of subnets": (
        {},
        {"new": {"a": 0.5, "b": 0.5}},
        "a mixture of subnets, and of no group",
    ),
}


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_a_bad_update_is_a_clear_error_and_changes_nothing(kind: str, closure: bool, idle: str):
    options, changes, message = BAD_UPDATES[kind]
    loop = Loop(**options, idle=idle)
    good_steps = 0 if "complexity" in kind or kind == "unknown label" else 4
    loop.train(good_steps)

    def bad() -> Any:
        loss = loop.backward(*batches(good_steps + 1)[good_steps])
        loop.sampled = None if changes is None else loop.sampled | changes
        return loss

    before = loop.everything()
    if not closure:
        bad()
    gradients = {n: p.grad for n, p in loop.model.named_parameters()}
    with pytest.raises((ValueError, RuntimeError)) as error:
        loop.optimizer.step(*([bad] if closure else []))
    assert message in str(error.value)
    assert_identical(loop.everything(), before)
    if not closure:
        assert all(p.grad is gradients[n] for n, p in loop.model.named_parameters())


def test_bad_arguments_are_refused_before_anything_is_attached():
    loop = Loop(attach=False)
    for arguments, message in [
        ({"architecture": {"layer1": "a"}}, "must be a callable that returns"),
        (
            {"architecture": dict, "idle": "sleep"},
            "idle must be 'auto', 'coast' or 'freeze', got 's",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            DynamicTraining(loop.optimizer, **arguments)
    with pytest.raises(ValueError, match="must be a torch Optimizer, got str"):
        DynamicTraining("sgd", architecture=dict)
    assert set(hooks(loop.optimizer).values()) == {0}


def test_step_sizes_that_are_kept_with_their_lr_are_refused():
    """RAdamLegacy and AdaBelief of timm before 1.0.31 have such a list in their param groups."""
    parameters = [torch.nn.Parameter(torch.ones(2))]
    group = {"params": parameters, "buffer": [[None, None, None] for _ in range(10)]}
    with pytest.raises(ValueError, match=r"RAdam of this version of timm .*timm 1\.0\.31 or later"):
        DynamicTraining(torch.optim.RAdam([group], lr=0.1), architecture=dict)


class TwoStep(torch.optim.SGD):
    """Sharpness-aware minimisation in its usual form: the closure is evaluated twice."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for _ in range(2):
            with torch.enable_grad():
                closure()
        return super().step()


def test_a_closure_that_is_evaluated_twice_is_refused():
    """At attachment, where it always is; and in the step of one that begins to."""
    with pytest.raises(ValueError, match=r"TwoStep is not supported: .* 2 times in one step"):
        Loop(TwoStep, momentum=0.9)
    assert not hooks_of_a_refused(TwoStep)

    class Later(TwoStep):
        def step(self, closure: Any = None) -> Any:
            return torch.optim.SGD.step(self) if closure is None else super().step(closure)

    loop = Loop(Later, momentum=0.9)
    before = loop.everything()
    with pytest.raises(RuntimeError, match="Later evaluated the closure twice in one step"):
        loop.optimizer.step(lambda: loop.backward(*batches(1)[0]))
    assert_identical(loop.everything()["weights"], before["weights"])
    assert loop.dynamic.updates == 0
    assert [group["lr"] for group in loop.optimizer.param_groups] == [LR, LR / 2]


def hooks_of_a_refused(kind: Any) -> int:
    loop = Loop(kind, attach=False, momentum=0.9)
    with pytest.raises(ValueError, match="not supported"):
        loop.attach()
    return sum(hooks(loop.optimizer).values())


@pytest.mark.parametrize("group_by", ["layer1", None])
def test_lookahead_is_refused_around_and_inside(group_by: str | None):
    loop = Loop(attach=False)
    outer = timm.optim.Lookahead(loop.optimizer, k=2)
    with pytest.raises(ValueError, match="Lookahead"):
        DynamicTraining(outer, architecture=dict)
    with pytest.raises(ValueError, match="is wrapped by Lookahead"):
        loop.attach(group_by=group_by)

    wrapped_later = Loop(group_by=group_by)
    outer = timm.optim.Lookahead(wrapped_later.optimizer, k=2)
    wrapped_later.backward(*batches(1)[0])
    before = wrapped_later.everything()
    with pytest.raises(ValueError, match="is wrapped by Lookahead"):
        outer.step()
    assert_identical(wrapped_later.everything(), before)


@pytest.mark.filterwarnings("ignore:SGD keeps no state")
def test_parameters_that_are_cast_are_lent_zeros_of_their_new_kind():
    """Zeros are kept from one update to the next; weight decay moves by them."""
    loop = Loop(functools.partial(torch.optim.SGD, weight_decay=0.1), idle="coast")
    loop.train(3)
    loop.model.double()
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    x, y, architecture = batches(1)[0]
    loop.backward(x.double(), y, architecture)
    idle = [name for name, p in loop.model.named_parameters() if p.grad is None]
    loop.optimizer.step()
    assert loop.dynamic.updates == 4
    moved = False
    for name, p in loop.model.named_parameters():
        if name in idle:
            assert p.grad is None
            assert torch.all(p.abs() <= before[name].abs())
            moved |= not torch.equal(p, before[name])
    assert moved


@pytest.mark.parametrize("group_by", ["layer1", None])
def test_states_are_those_that_updates_use_and_checkpoints_keep(group_by: str | None):
    loop = Loop(group_by=group_by)
    loop.train(12)
    states = loop.dynamic.states
    assert list(states) == (loop.dynamic.groups if group_by else [None])
    assert states[loop.dynamic.last.group] is loop.optimizer.state

    def saved() -> list[torch.Tensor]:
        content = loop.optimizer.state_dict()
        packed = [content["state"]]
        if group_by:
            packed = [state for _, state, _ in content["dynamic_training"]["groups"]["groups"]]
        return [value["momentum_buffer"] for state in packed for value in state.values()]

    assert any(momentum.any() for momentum in saved())
    for state in states.values():
        for value in state.values():
            value["momentum_buffer"].zero_()
    assert saved()
    assert not any(momentum.any() for momentum in saved())
