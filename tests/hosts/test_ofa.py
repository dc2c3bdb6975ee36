"""once-for-all: the example of the documentation, with `sample_active_subnet()`."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

pytest.importorskip("ofa", reason="python -m benchmarks.hosts --hosts ofa")
from torch.nn.functional import cross_entropy

from nas_dynamic.complexity import count_parameters
from tests.attach.reference import assert_identical
from tests.hosts.by_hand import page, run

pytestmark = pytest.mark.host
SETTING, LOOP = page("ofa").split("net.train()\n")


def setting() -> dict[str, Any]:
    return run(SETTING)


def batches(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(4, 3, 32, 32, generator=generator),
            torch.randint(10, (4,), generator=generator),
        )
        for _ in range(number)
    ]


def train(names: dict[str, Any], start: int, end: int, accumulate: int = 1) -> list[dict[str, int]]:
    """The page's loop over batches that are known."""
    net, optimizer, subnets = names["net"].train(), names["optimizer"], []
    for step in range(start, end):
        with names["draws"]:
            names["sampled"] = names["flat"](net.sample_active_subnet())
        optimizer.zero_grad()
        for images, labels in batches(end * accumulate)[
            step * accumulate : (step + 1) * accumulate
        ]:
            (cross_entropy(net(images), labels) / accumulate).backward()
        optimizer.step()
        subnets.append(names["dynamic"].last.architecture)
    return subnets


def activate(net: Any, a: dict[str, int]) -> None:
    settings = [[c for label, c in a.items() if label.rstrip("0123456789") == k] for k in
                ("ks", "e", "d")]  # fmt: skip
    net.set_active_subnet(*settings)


def test_the_page_runs_as_written():
    names = run(page("ofa"))
    dynamic = names["dynamic"]
    assert dynamic.updates == dynamic.calr.total_steps == 12
    assert len(dynamic.groups) == 3


def test_sizes_are_those_of_the_network_that_ofa_builds():
    names = setting()
    net, generator = names["net"], random.Random(0)
    for _ in range(8):
        a = {label: generator.choice(c) for label, c in names["space"].choices.items()}
        activate(net, a)
        assert names["parameters"](a) == count_parameters(net.get_active_subnet(False))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_one_optimizer_a_group_over_its_own_sampled_sequence(accumulate: int):
    names = setting()
    reference = copy.deepcopy(names["net"]).train()
    subnets = train(names, 0, 6, accumulate)
    theirs = copy.deepcopy(reference)
    outer = random.getstate()
    random.seed(0)
    assert subnets == [names["flat"](theirs.sample_active_subnet()) for _ in subnets]
    random.setstate(outer)
    optimizers: dict[int, torch.optim.Optimizer] = {}
    for step, a in enumerate(subnets):
        optimizer = optimizers.setdefault(
            a["d4"], torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
        )
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 12) ** names["calr"].gamma(a)
        activate(reference, a)
        optimizer.zero_grad(set_to_none=names["dynamic"].idle == "freeze")
        for images, labels in batches(6 * accumulate)[step * accumulate : (step + 1) * accumulate]:
            (cross_entropy(reference(images), labels) / accumulate).backward()
        optimizer.step()
    assert len(optimizers) > 1
    assert_identical(names["net"].state_dict(), reference.state_dict())


def test_resume_is_exact(tmp_path):
    straight = setting()
    subnets = train(straight, 0, 6)
    first = setting()
    before = train(first, 0, 3)
    torch.save([first["net"].state_dict(), first["optimizer"].state_dict()], tmp_path / "last.pth")
    random.seed(99)
    resumed = setting()
    weights, state = torch.load(tmp_path / "last.pth", weights_only=True)
    resumed["net"].load_state_dict(weights)
    resumed["optimizer"].load_state_dict(state)
    assert before + train(resumed, 3, 6) == subnets
    assert_identical(resumed["net"].state_dict(), straight["net"].state_dict())
