"""What a trial on a small copy tells of an optimizer, and what attachment makes of it."""

from __future__ import annotations

import functools
import random
import warnings
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.attach.trial import Trial, try_updates
from tests.attach.reference import Mixed, assert_identical, batches, make_model

SEPARATE = MomentumSeparation("layer1")
CALR = CaLR(lambda a: 1.0, total_steps=10, bounds=(1, 2))


def tried(make: Any) -> Trial:
    return try_updates(make(make_model(Mixed).parameters()))


class OutsideOfState(torch.optim.SGD):
    """Keeps its momenta in an attribute."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.buffers: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for number, p in enumerate(group["params"]):
                if p.grad is not None:
                    buffer = self.buffers.setdefault(number, torch.zeros_like(p))
                    buffer.mul_(0.9).add_(p.grad)
                    p.sub_(group["lr"] * buffer)


class Averaging(torch.optim.SGD):
    """Keeps an average of the weights and gives it back, under a name that nobody knows."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p].setdefault("mine", p.clone())
                    kept.lerp_(p, 0.5)


class OwnRate(torch.optim.SGD):
    """Has a learning rate of its own."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(0.1 * p.grad)


def test_plain_optimizers_are_as_they_are_known():
    for make in (
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        torch.optim.AdamW,
        functools.partial(timm.optim.Lamb, lr=0.1),
        functools.partial(timm.optim.Adan, lr=0.1),
    ):
        trial = tried(make)
        assert not trial.failure
        assert trial.separates
        assert not trial.weights
        assert trial.uses_lr
    assert tried(torch.optim.AdamW).state_share == pytest.approx(2, rel=0.1)
    assert tried(functools.partial(torch.optim.SGD, lr=1)).state_share == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            functools.partial(OutsideOfState, lr=0.1),
            "keeps a part of its state outside of",
        ),
        (functools.partial(Averaging, lr=0.1), "keeps a copy of the weights in its state, 'mine'"),
        (timm.optim.MADGRAD, "keeps a copy of the weights in its state, 'x0'"),
        (functools.partial(torch.optim.ASGD, lr=0.1), "copy of the weights in its state, 'ax'"),
    ],
)
def test_momenta_that_cannot_be_separated_are_refused_and_calr_is_not(make: Any, message: str):
    optimizer = make(make_model(Mixed).parameters())
    with pytest.raises(ValueError, match=message):
        DynamicTraining(optimizer, architecture=dict, momentum=SEPARATE)
    assert not optimizer._optimizer_step_pre_hooks
    assert vars(optimizer).keys().isdisjoint({"step", "state_dict", "load_state_dict"})
    DynamicTraining(optimizer, architecture=dict, calr=CALR).detach()


def test_calr_is_refused_where_the_lr_has_no_effect():
    optimizer = OwnRate(make_model(Mixed).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="does not update by the lr of its param groups"):
        DynamicTraining(optimizer, architecture=dict, calr=CALR)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match="has no lr in its param groups"):
        DynamicTraining(optimizer, architecture=dict, calr=CALR)


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_schedule_free_keeps_the_weights_that_its_eval_gives_back(name: str):
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = getattr(schedulefree, name)(make_model(Mixed).parameters(), lr=0.1)
    optimizer.train()
    with pytest.raises(ValueError, match="copy of the weights in its state, 'z'"):
        DynamicTraining(optimizer, architecture=dict, momentum=SEPARATE)


@pytest.mark.parametrize("name", ["Prodigy", "Ranger", "DAdaptAdaGrad"])
def test_pytorch_optimizer_keeps_weights_under_other_names(name: str):
    optimizers = pytest.importorskip("pytorch_optimizer")
    optimizer = getattr(optimizers, name)(make_model(Mixed).parameters())
    with pytest.raises(ValueError, match="keeps a copy of the weights in its state"):
        DynamicTraining(optimizer, architecture=dict, momentum=SEPARATE)


@pytest.mark.parametrize(
    ("make", "idle"),
    [
        (functools.partial(torch.optim.SGD, momentum=0.9), "freeze"),
        (torch.optim.AdamW, "freeze"),
        (timm.optim.Lion, "freeze"),
        (functools.partial(torch.optim.SGD, fused=True), "freeze"),
        (functools.partial(torch.optim.SGD, momentum=0.9, fused=True), "coast"),
    ],
    ids=["sgd", "adamw", "lion", "fused sgd without momentum", "fused sgd"],
)
def test_idle_parameters_freeze_by_default_where_they_can(make: Any, idle: str):
    dynamic = DynamicTraining(make(make_model(Mixed).parameters(), lr=1e-3), dict, calr=CALR)
    assert dynamic.idle == idle
    dynamic.detach()
    optimizer = make(make_model(Mixed).parameters(), lr=1e-3)
    assert DynamicTraining(optimizer, dict, calr=CALR, idle="coast").idle == "coast"


class Drawing(torch.optim.SGD):
    """Draws from every stream of random numbers that there is."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 + random.random() * np.random.random() * torch.rand(()) / 100)  # noqa: NPY002


def test_what_draws_random_numbers_separates():
    assert tried(functools.partial(Drawing, lr=0.1, momentum=0.9)).separates


@pytest.mark.parametrize("name", ["sgd", "adamw", "adan", "drawing"])
def test_a_trial_leaves_optimizer_weights_and_random_numbers_as_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    model = make_model(Mixed)
    make = {
        "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "adamw": torch.optim.AdamW,
        "adan": functools.partial(timm.optim.Adan, lr=0.1),
        "drawing": functools.partial(Drawing, lr=0.1),
    }[name]
    optimizer = make(model.parameters())
    optimizer.mine = [torch.ones(2)]  # it has attributes of its own, so the trial is a new one
    for batch in batches(2):
        nn.functional.cross_entropy(model(batch[0], batch[2]), batch[1]).backward()
        optimizer.step()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients = [p.grad for p in model.parameters()]
    state = optimizer.state_dict()
    streams = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    # There may be GPUs beside the device of the weights, whose streams nothing puts back.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds GPUs"))
    try_updates(optimizer)
    assert_identical({n: p.detach() for n, p in model.named_parameters()}, before)
    assert_identical(optimizer.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == streams[1:]  # noqa: NPY002
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


def test_what_cannot_be_tried_is_said():
    class Stubborn(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            if len(self.param_groups[0]["params"]) < 10:
                raise ArithmeticError("not enough parameters")
            super().step()

    optimizer = Stubborn(make_model(Mixed).parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="could not be tried on a small copy .*not enough param"):
        DynamicTraining(optimizer, dict, momentum=SEPARATE)


def test_a_training_with_neither_part_is_warned_of():
    optimizer = torch.optim.SGD(make_model(Mixed).parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="neither calr nor momentum is given"):
        DynamicTraining(optimizer, dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DynamicTraining(torch.optim.SGD(make_model(Mixed).parameters(), lr=0.1), dict, calr=CALR)
