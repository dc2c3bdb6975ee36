"""The sweep over optimizers of other makers has no silent difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from tests.attach.optimizers_of_others import LIBRARIES, cases, row

SAMPLE = [
    *("pytorch_optimizer.Kron", "pytorch_optimizer.SaRA", "pytorch_optimizer.Prodigy"),
    *("pytorch_optimizer.StableAdamW", "schedulefree.SGDScheduleFree"),
    *("bitsandbytes.AdamW8bit", "bitsandbytes.SGD8bit"),
]
"""They draw of numpy, read their states at loading, keep weights, or quantise states."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_identical_or_refused(name: str):
    library = name.partition(".")[0]
    pytest.importorskip(library)
    (case,) = (case for case in cases([library]) if case.name == name)
    cells, different = row(case)
    assert not different, cells
    assert not any(cell.startswith("error") for cell in cells), cells
    assert not case.unbuildable


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RAdam"])
def test_those_that_need_a_closure_take_the_lr_of_each_subnet(name: str):
    """They are in no table, whose loops have none. Momenta are refused: they keep weights."""
    schedulefree = pytest.importorskip("schedulefree")
    weights = []
    for attached in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = getattr(schedulefree, f"{name}ScheduleFreeClosure")(model.parameters(), lr=0.1)
        if attached:
            momentum = MomentumSeparation("width")
            with pytest.raises(ValueError, match="keeps a copy of the weights in its state, 'z'"):
                DynamicTraining(optimizer, lambda: {"width": 1}, momentum=momentum)
            calr = CaLR(lambda a: 1.0, total_steps=10, bounds=(1, 2), gamma_max=2.0)
            DynamicTraining(optimizer, lambda: {"width": 1}, calr=calr)
        for step in range(6):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))

            def closure(model: Any = model, optimizer: Any = optimizer, x: Any = x) -> Any:
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                return loss

            if not attached:
                optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 10) ** 2
            optimizer.step(closure)
        weights.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", LIBRARIES)
def test_none_differs_silently(library: str):
    pytest.importorskip(library)
    rows = [row(case) for case in cases([library])]
    assert not [cells for cells, different in rows if different]
