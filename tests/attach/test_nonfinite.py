"""A step whose gradients are not finite: raised or skipped, and nothing is changed by it."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.attach.nonfinite import all_finite
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    Mixed,
    assert_identical,
    backward,
    batches,
    complexity,
    make_model,
    param_groups,
)

OPTIMIZERS: dict[str, Any] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "fused sgd": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
    "foreach sgd": functools.partial(torch.optim.SGD, momentum=0.9, foreach=True),
    "adamw": torch.optim.AdamW,
    "fused adamw": functools.partial(torch.optim.AdamW, fused=True),
    "lamb": timm.optim.Lamb,
    "adan": timm.optim.Adan,
}
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


class Loop:
    def __init__(self, optimizer: str, idle: str = "coast", momentum: bool = True, **options: Any):
        self.model = make_model(Mixed)
        self.optimizer = OPTIMIZERS[optimizer](param_groups(self.model, 0.01, 0.05), lr=0.01)
        self.architecture: dict[str, str] = {}
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.architecture,
            calr=CaLR(complexity, total_steps=20, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1") if momentum else None,
            idle=idle,
            **options,
        )

    def backward(self, batch: Any, bad: float | None = None, set_to_none: bool = True) -> None:
        x, y, self.architecture = batch
        self.optimizer.zero_grad(set_to_none=set_to_none)
        backward(self.model, x, y, self.architecture, graph=False)
        if bad is not None:
            self.model.head.weight.grad[1, 2] = bad

    def step(self, closure: bool, *backward_arguments: Any) -> None:
        if closure:
            self.optimizer.step(lambda: self.backward(*backward_arguments))
        else:
            self.backward(*backward_arguments)
            self.optimizer.step()

    def everything(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        state["dynamic_training"].pop("skipped")
        return {"model": self.model.state_dict(), "optimizer": state}


@pytest.mark.filterwarnings("ignore:step .* is skipped")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("closure", [False, True])
def test_skipped_steps_leave_no_trace(name: str, idle: str, closure: bool):
    if name == "fused sgd" and idle == "freeze":
        pytest.skip("refused at attachment")
    loop, untroubled = Loop(name, idle, nonfinite="skip"), Loop(name, idle)
    skipped = 0
    for step, batch in enumerate(batches(9)):
        # Also at the first step of all, and at the first of a group.
        for bad in BAD.values() if step in (0, 1, 5) else ():
            loop.step(closure, batch, bad)
            skipped += 1
            assert (loop.dynamic.updates, loop.dynamic.skipped) == (step, skipped)
            assert_identical(loop.everything(), untroubled.everything())
        loop.step(closure, batch)
        untroubled.step(closure, batch)
        assert_identical(loop.everything(), untroubled.everything())
    assert loop.dynamic.updates == 9


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("name", ["sgd", "fused adamw", "lamb"])
def test_raise_names_step_and_subnet_and_training_can_go_on(name: str, momentum: bool):
    loop = Loop(name, momentum=momentum, nonfinite="raise")
    untroubled = Loop(name, momentum=momentum)
    for step, batch in enumerate(batches(6)):
        if step in (0, 4):
            loop.backward(batch, float("nan"))
            message = f"step {step} have an inf or a NaN, of the subnet {batch[2]}"
            with pytest.raises(FloatingPointError, match=message):
                loop.optimizer.step()
        loop.step(False, batch)
        untroubled.step(False, batch)
    assert_identical(loop.everything(), untroubled.everything())


@pytest.mark.filterwarnings("ignore:step .* is skipped")
@pytest.mark.parametrize("name", ["lamb", "adan"])
def test_steps_that_an_optimizer_counts_in_param_groups_are_taken_back_without_separation(
    name: str,
):
    loop = Loop(name, momentum=False, nonfinite="skip")
    untroubled = Loop(name, momentum=False)
    for batch in batches(4):
        loop.step(False, batch, float("inf"))
        loop.step(False, batch)
        untroubled.step(False, batch)
    assert_identical(loop.everything(), untroubled.everything())


@pytest.mark.parametrize("idle", ["coast", "freeze"])
def test_gradients_after_a_skipped_step_are_those_that_the_host_expects(idle: str):
    loop = Loop("sgd", idle, nonfinite="skip")
    loop.backward(batches(1)[0], float("nan"))
    gradients = {name: p.grad for name, p in loop.model.named_parameters()}
    with pytest.warns(UserWarning, match="step 0 is skipped: its gradients have an inf or a NaN"):
        loop.optimizer.step()
    for name, p in loop.model.named_parameters():
        assert p.grad is gradients[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        loop.step(False, batches(1)[0], float("nan"))
    assert loop.dynamic.skipped == 2


@pytest.mark.filterwarnings("ignore:step .* is skipped")
def test_zeroed_gradients_of_a_skipped_step_do_not_train_the_next_subnet():
    """With `zero_grad(set_to_none=False)` they would pass for gradients, and not freeze."""
    loop = Loop("sgd", "freeze", nonfinite="skip")
    first, second = batches(9)[0], next(b for b in batches(9) if b[2] != batches(9)[0][2])
    loop.step(False, first, float("nan"), False)
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    loop.step(False, second, None, False)
    moved = {n for n, p in loop.model.named_parameters() if not torch.equal(p, before[n])}
    for label, candidate in second[2].items():
        assert not any(n.startswith(label) and f".{candidate}." not in n for n in moved)


@pytest.mark.filterwarnings("ignore:step .* is skipped")
def test_skipped_count_is_in_the_checkpoint():
    loop, resumed = (Loop("adamw", nonfinite="skip") for _ in range(2))
    loop.step(False, batches(1)[0], float("nan"))
    resumed.optimizer.load_state_dict(loop.optimizer.state_dict())
    assert resumed.dynamic.skipped == 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_steps_under_grad_scaler_are_left_to_it(fused: bool, policy: str):
    loop = Loop("fused adamw" if fused else "adamw", nonfinite=policy)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y, loop.architecture = batches(1)[0]
    loss = nn.functional.cross_entropy(loop.model(x, loop.architecture), y)
    scaler.scale(loss).backward()
    loop.model.head.bias.grad[0] = float("inf")
    scaler.step(loop.optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert (loop.dynamic.updates, loop.dynamic.skipped) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_gradients_are_finite_and_small_faults_are_found(dtype: torch.dtype):
    """Among them some whose sum of squares is inf."""
    greatest = torch.finfo(dtype).max
    parameters = [nn.Parameter(torch.ones(3, 4, dtype=dtype)) for _ in range(4)]
    parameters.append(nn.Parameter(torch.ones(0, dtype=dtype)))
    parameters.append(nn.Parameter(torch.ones(5, dtype=torch.float32)))
    for p in parameters:
        p.grad = torch.full_like(p, greatest if p.dtype == dtype else 1.0)
    assert all_finite(parameters)
    for number in (0, 3, 5):
        for bad in BAD.values():
            gradient = parameters[number].grad
            good, gradient.view(-1)[2] = gradient.clone(), bad
            assert not all_finite(parameters)
            parameters[number].grad = good
    assert all_finite(parameters)


def test_sparse_gradients():
    bag = nn.EmbeddingBag(8, 3, sparse=True)
    bag(torch.tensor([[1, 2], [1, 3]])).sum().backward()
    assert all_finite([bag.weight])
    bag.weight.grad._values()[0, 0] = float("nan")
    assert not all_finite([bag.weight])


def test_bad_policy_is_refused():
    with pytest.raises(ValueError, match="nonfinite must be 'ignore', 'raise' or 'skip', got 'c"):
        Loop("sgd", nonfinite="clip")
