"""GradScaler with gradient clipping in a plain loop: what is trained, and what a skip leaves."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nas_dynamic
from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    Mixed,
    assert_identical,
    batches,
    complexity,
    make_model,
    param_groups,
)

OPTIMIZERS: dict[str, Any] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "fused sgd": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adamw": torch.optim.AdamW,
    "fused adamw": functools.partial(torch.optim.AdamW, fused=True),
}
SCALE = 1024.0  # a power of two changes no bit of the gradients
MAX_NORM = 0.1  # less than the norm of any step here
STEPS = 9


class Loop:
    """Trains with clipping: without a scaler, or by one, before `unscale_` or after it."""

    def __init__(
        self, optimizer: str, idle: str, scaled: bool, momentum: bool = True, **options: Any
    ) -> None:
        self.model = make_model(Mixed)
        self.optimizer = OPTIMIZERS[optimizer](param_groups(self.model, 0.05, 0.05), lr=0.05)
        self.scaler = torch.amp.GradScaler(
            "cpu", init_scale=SCALE, growth_interval=1000, enabled=scaled
        )
        self.architecture: dict[str, str] = {}
        self.norms: list[float] = []
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.architecture,
            calr=CaLR(complexity, total_steps=20, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1") if momentum else None,
            idle=idle,
            **options,
        )

    def step(self, batch: Any, clip: str = "after", inf: bool = False) -> None:
        x, y, self.architecture = batch
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x, self.architecture), y)
        self.scaler.scale(loss).backward()
        if inf:
            self.model.head.weight.grad[1, 2] = float("inf")
        parameters = self.model.parameters()
        if clip == "before":  # the norm is that of the scaled gradients
            nn.utils.clip_grad_norm_(parameters, MAX_NORM * self.scaler.get_scale())
        if clip == "after":
            self.scaler.unscale_(self.optimizer)
            self.norms.append(float(nn.utils.clip_grad_norm_(parameters, MAX_NORM)))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def everything(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


@pytest.fixture(params=OPTIMIZERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["coast", "freeze"])
def idle(request: pytest.FixtureRequest, name: str) -> str:
    if (name, request.param) == ("fused sgd", "freeze"):
        pytest.skip("refused at attachment")
    return request.param


def test_clipping_after_unscale_is_that_of_a_training_without_scaling(name: str, idle: str):
    scaled, plain = Loop(name, idle, True), Loop(name, idle, False)
    for batch in batches(STEPS):
        scaled.step(batch)
        plain.step(batch)
    assert_identical(scaled.everything(), plain.everything())
    assert scaled.norms == plain.norms
    assert min(plain.norms) > MAX_NORM


def test_clipping_ahead_of_unscale_by_the_scaled_norm_is_the_same_but_for_rounding(
    name: str, idle: str
):
    scaled, plain = Loop(name, idle, True), Loop(name, idle, False)
    for batch in batches(STEPS):
        scaled.step(batch, "before")
        plain.step(batch)
    torch.testing.assert_close(
        scaled.model.state_dict(), plain.model.state_dict(), rtol=1e-4, atol=1e-5
    )
    assert scaled.dynamic.updates == STEPS


@pytest.mark.parametrize("clip", ["after", "before"])
def test_a_skipped_step_with_clipping_leaves_no_trace(name: str, idle: str, clip: str):
    loop, untroubled = Loop(name, idle, True), Loop(name, idle, True)
    for step, batch in enumerate(batches(STEPS)):
        # Also at the first step of all, and at the first of a group. The scale halves.
        for _ in range(2 if step in (0, 1, 5) else 0):
            scale = loop.scaler.get_scale()
            loop.step(batch, clip, inf=True)
            assert loop.scaler.get_scale() == scale / 2
            assert loop.dynamic.updates == step
            assert_identical(loop.everything(), untroubled.everything())
        # After the skips the scales differ, which clipping by the scaled norm would see.
        loop.step(batch)
        untroubled.step(batch)
        assert_identical(loop.everything(), untroubled.everything())
    assert loop.dynamic.updates == STEPS


@pytest.mark.parametrize("momentum", [True, False])
def test_a_parameter_first_met_in_a_skipped_step_has_no_state_after_it(
    name: str, idle: str, momentum: bool
):
    """A fused optimizer allocates it; SGD's is whatever was in the memory then."""
    loop, untroubled = (Loop(name, idle, True, momentum) for _ in range(2))
    known = batches(1)[0]
    for step in range(2):
        other = (known[0] + step, known[1], known[2] | {"layer2": "ab"[step]})
        with poisoned_memory():
            loop.step(other, inf=True)
        assert_identical(loop.everything(), untroubled.everything())
        loop.step(other)
        untroubled.step(other)
        assert_identical(loop.everything(), untroubled.everything())


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Give memory that is not initialised a content that no zeros have."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


class OwnReads(TorchDispatchMode):
    """Counts the numbers that the package reads out of tensors, and so would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function is torch.ops.aten._local_scalar_dense.default:
            frame: Any = sys._getframe()
            rooms = (nas_dynamic, torch.optim, torch.amp)
            while not (of := [r for r in rooms if frame.f_code.co_filename.startswith(folder(r))]):
                frame = frame.f_back
            self.count += of == [nas_dynamic]
        return function(*args, **(kwargs or {}))


def folder(package: Any) -> str:
    return str(Path(package.__file__).parent) + os.sep


@pytest.mark.parametrize("nonfinite", ["ignore", "skip"])
@pytest.mark.parametrize("scaled", [False, True])
def test_an_update_waits_for_no_number_of_the_device(
    name: str, idle: str, scaled: bool, nonfinite: str
):
    if nonfinite == "skip" and "fused" not in name:
        pytest.skip("waits for the device, as documented")
    loop, reads = Loop(name, idle, scaled, nonfinite=nonfinite), []
    for batch in batches(STEPS):
        with OwnReads() as mode:
            loop.step(batch, clip="")
        reads.append(mode.count)
    # Whether an update was made is asked for in the next step, or by who wants to know.
    late = 0 if "fused" not in name or (not scaled and nonfinite == "ignore") else 1
    assert reads == [0] + [late] * (STEPS - 1)
    with OwnReads() as mode:
        assert loop.dynamic.updates == loop.dynamic.updates == STEPS
    assert mode.count == late
