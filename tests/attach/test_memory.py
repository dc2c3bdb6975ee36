"""Attachment leaves nothing behind, and updates need no more memory with time."""

from __future__ import annotations

import gc

import pytest
import torch

from benchmarks.memory.growth import measured_memory
from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.attach.training import _attached
from tests.attach.reference import C_MAX, C_MIN, Mixed, backward, batches, complexity, make_model


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of objects that are only looked at
def test_attaching_and_detaching_a_thousand_times_leaves_nothing():
    model = make_model(Mixed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y, architecture = batches(1)[0]

    def cycle() -> None:
        dynamic = DynamicTraining(
            optimizer,
            architecture=lambda: architecture,
            calr=CaLR(complexity, total_steps=9, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1"),
        )
        backward(model, x, y, architecture, graph=False)
        optimizer.step()
        optimizer.zero_grad()
        dynamic.detach()

    def alive() -> tuple[int, int]:
        gc.collect()
        objects = gc.get_objects()
        return sum(torch.is_tensor(o) for o in objects), sum(
            isinstance(o, DynamicTraining) for o in objects
        )

    for _ in range(10):
        cycle()
    tensors, trainings = alive()
    for _ in range(1000):
        cycle()
    tensors_after, trainings_after = alive()  # what other tests left may go in between
    assert tensors_after <= tensors
    assert trainings_after <= trainings
    assert optimizer not in _attached
    hooks = [v for k, v in vars(optimizer).items() if k.endswith("_hooks")]
    assert len(hooks) >= 5
    assert not any(hooks)


@pytest.mark.process
def test_three_thousand_updates_of_eight_groups_need_no_more_memory():
    measured = measured_memory(3000)
    assert (measured["updates"], measured["groups"]) == (3000, 8)
    # One float kept of every update would be 0.05 MiB, one tensor of it 1 MiB.
    assert measured["at_the_end"] - measured["after_1000"] < 1.0
