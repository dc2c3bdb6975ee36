"""On a GPU: an update equals that of one optimizer a group, to the bit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    Mixed,
    batches,
    calr_factor,
    complexity,
    make_model,
    param_groups,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

TOTAL_STEPS, LR = 40, 0.01
OPTIMIZERS: dict[str, Any] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "fused sgd": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adamw": torch.optim.AdamW,
    "fused adamw": functools.partial(torch.optim.AdamW, fused=True),
    "capturable adam": functools.partial(torch.optim.Adam, capturable=True),
}


@pytest.mark.parametrize("scaled", [False, True], ids=["fp32", "GradScaler"])
@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_equal_one_optimizer_a_group(name: str, idle: str, scaled: bool, monkeypatch):
    if name == "fused sgd" and idle == "freeze":
        pytest.skip("refused at attachment")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    here, there = (make_model(Mixed).cuda() for _ in range(2))
    scalers = [torch.amp.GradScaler("cuda", init_scale=256.0, enabled=scaled) for _ in range(2)]
    optimizer = OPTIMIZERS[name](param_groups(here, LR, 0.05), lr=LR)
    told: dict[str, str] = {}
    dynamic = DynamicTraining(
        optimizer,
        architecture=lambda: told,
        calr=CaLR(complexity, total_steps=TOTAL_STEPS, bounds=(C_MIN, C_MAX)),
        momentum=MomentumSeparation("layer1"),
        idle=idle,
    )
    groups: dict[str, torch.optim.Optimizer] = {}
    if name == "fused sgd":  # which coasts from the start
        for parameter in there.parameters():
            parameter.grad = torch.zeros_like(parameter)
    for step, (x, y, architecture) in enumerate(batches()):
        told.update(architecture)
        group = architecture["layer1"]
        if group not in groups:
            groups[group] = OPTIMIZERS[name](param_groups(there, LR, 0.05), lr=LR)
        for param_group, lr in zip(groups[group].param_groups, (LR, LR / 2), strict=True):
            param_group["lr"] = lr * calr_factor(architecture, step, TOTAL_STEPS)
        for model, each, scaler in zip(
            (here, there), (optimizer, groups[group]), scalers, strict=True
        ):
            model.zero_grad(set_to_none=model is here or idle == "freeze")
            loss = nn.functional.cross_entropy(model(x.cuda(), architecture), y.cuda())
            scaler.scale(loss).backward()
            scaler.step(each)
            scaler.update()
    assert dynamic.updates == len(batches())
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(one, other)
