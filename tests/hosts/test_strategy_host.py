"""A host whose strategy samples and runs backward in one call, and generators of its own."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch

from nas_dynamic.host import Options
from nas_dynamic.host.sampling_state import GlobalGenerators, SamplingOncePerUpdate
from nas_dynamic.host.strategy_host import StrategyHost
from nas_dynamic.sampling import UniformSampler
from tests.attach.reference import assert_identical
from tests.hosts.by_hand import Recorder, sgd, train_by_hand
from tests.hosts.tiny import Supernet, Task, loss_of, parameters, supernet

pytestmark = pytest.mark.host
T = 8


class Strategy:
    """Trains the largest subnet, or random ones, as the strategies of a framework do."""

    def __init__(self, net: Supernet, randoms: int, largest: bool) -> None:
        self.sampler = UniformSampler(net.space, seed=2)
        self.sample = self.sampler.sample
        self.loss_function = torch.nn.functional.cross_entropy
        self.randoms, self.largest = randoms, largest

    def __call__(self, net: Any, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> None:
        if self.largest:
            net.activate(dict.fromkeys(("layer1", "layer2", "layer3"), 5))
            (self.loss_function(net(x), y) * scale).backward()
        for _ in range(self.randoms):
            net.activate(self.sample())
            (self.loss_function(net(x), y) * scale).backward()
        net.activate(dict.fromkeys(("layer1", "layer2", "layer3"), 1))


class Stub:
    def activate(self, architecture: Any) -> None: ...

    def __call__(self, x: torch.Tensor) -> None: ...


class Loop(StrategyHost):
    def __init__(self, strategy: Strategy, net: Supernet, optimizer: Any, **options: Any) -> None:
        self.strategy, self.net, self.space, self.optimizer = strategy, net, net.space, optimizer
        strategy.sample = self.recorded(strategy.sample)
        strategy.loss_function = self.weighted(strategy.loss_function)
        self.start(Options(total_steps=T, **options))

    def step(self, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> None:
        arguments = (x, y, scale)
        self.call(
            lambda: self.strategy(Stub(), *arguments), lambda: self.strategy(self.net, *arguments)
        )

    def complexity(self, measure: str) -> Any:
        return parameters

    def undrawn(self) -> Any:
        return self.space.decode([2, 2, 2])

    def state_dict(self) -> Any:
        return self.strategy.sampler.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.strategy.sampler.load_state_dict(state)


def batches(number: int) -> list[Any]:
    return list(Task().loader())[:number]


def loop(randoms: int = 1, largest: bool = False, **options: Any) -> Loop:
    net = supernet()
    return Loop(Strategy(net, randoms, largest), net, sgd(net), **options)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("randoms", "largest", "options"),
    [
        (1, False, {"group_by": "layer2"}),
        (3, False, {"momentum": False}),
        (2, True, {"momentum": False}),
    ],
)
def test_equals_the_formula_written_out(accumulate, randoms, largest, options):
    host = loop(randoms, largest, **options)
    recorder, data = Recorder(host.training), batches(T * accumulate)
    for number, (x, y) in enumerate(data, 1):
        host.step(x, y, 1 / accumulate)
        if number % accumulate == 0:
            host.optimizer.step()
            host.optimizer.zero_grad()
    sampler = UniformSampler(host.space, seed=2)
    whole = [host.undrawn()] if largest else []
    expected = [[*whole, *(sampler.sample() for _ in range(randoms))] for _ in range(T)]
    assert recorder.subnets == expected

    reference = supernet()

    def backward(step: int, drawn: Any, weights: Any) -> None:
        for x, y in data[accumulate * step : accumulate * (step + 1)]:
            for subnet, weight in zip(drawn, weights, strict=True):
                reference.activate(subnet)
                (loss_of(reference, x, y) * weight * (1 / accumulate)).backward()

    train_by_hand(reference, host.training, expected, backward)
    assert_identical(host.net.state_dict(), reference.state_dict())


def test_a_checkpoint_within_an_update_draws_its_subnet_again():
    host, (batch, *_) = loop(group_by="layer2"), batches(1)
    host.step(*batch)
    state = copy.deepcopy(host.optimizer.state_dict())
    host.optimizer.step()
    resumed = loop(group_by="layer2")
    resumed.strategy.sample()
    resumed.optimizer.load_state_dict(state)
    resumed.step(*batch)
    resumed.optimizer.step()
    assert resumed.training.last.architecture == host.training.last.architecture
    assert_identical(resumed.net.state_dict(), host.net.state_dict())


def test_what_is_refused_changes_nothing():
    host, (batch, *_) = loop(2, True, group_by="layer2"), batches(1)
    before = host.strategy.sampler.state_dict()
    with pytest.raises(ValueError, match="several momentum groups in one update"):
        host.step(*batch)
    assert host.strategy.sampler.state_dict() == before
    assert all(p.grad is None for p in host.net.parameters())
    loss_of(host.net, *batch).backward()
    with pytest.raises(RuntimeError, match="has not been called for this update"):
        host.optimizer.step()
    x = torch.zeros(1, 3)
    assert host.strategy.loss_function(x, torch.tensor([0])) == pytest.approx(np.log(3))

    host = loop()
    state = host.optimizer.state_dict()
    with pytest.raises(ValueError, match="no state of the sampling"):
        host.optimizer.load_state_dict({k: v for k, v in state.items() if "sampling" not in k})

    optimizer = torch.optim.LBFGS(supernet().parameters())
    with pytest.raises(ValueError, match="LBFGS"):
        Loop(Strategy(supernet(), 1, False), supernet(), optimizer)
    assert optimizer.state_dict().keys() == {"state", "param_groups"}, "as it was"


def test_after_its_end_the_optimizer_is_plain():
    host = loop()
    assert isinstance(host._sampling, SamplingOncePerUpdate)
    host._sampling.end()
    assert host.optimizer.state_dict().keys() == {"state", "param_groups"}
    assert not {"step", "state_dict", "load_state_dict"} & vars(host.optimizer).keys()


def test_global_generators_are_swapped_and_continue():
    def draw() -> tuple[float, float]:
        return random.random(), np.random.rand()  # noqa: NPY002

    random.seed(1), np.random.seed(1)  # noqa: NPY002
    outside = [draw() for _ in range(4)]
    random.seed(1), np.random.seed(1)  # noqa: NPY002
    generators, inside, seen, states = GlobalGenerators(seed=3), [], [], []
    for _ in range(4):
        seen.append(draw())
        with generators:
            inside.append(draw())
        states.append(generators.state_dict())
    assert seen == outside
    again = GlobalGenerators(seed=9)
    again.load_state_dict(states[1])
    with again:
        assert [draw() for _ in range(2)] == inside[2:]
    own = GlobalGenerators(seed=3)
    with own:
        assert [draw() for _ in range(4)] == inside
