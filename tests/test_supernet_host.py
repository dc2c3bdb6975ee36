"""SupernetHost by itself: drawing once an update, checkpoints, and finding the supernet."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from nas_dynamic import SearchSpace, UniformSampler
from nas_dynamic.host import Options
from nas_dynamic.host.supernet_host import SupernetHost, find_supernet
from tests.attach.reference import assert_identical


class Net(nn.Module):
    """A choice of two linear layers, named by classes, which no checkpoint may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.space = SearchSpace({"layer": [nn.ReLU, nn.Tanh]})
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.computed: list[type] = []

    def activate(self, architecture: Any) -> None:
        self.computed.append(architecture["layer"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[self.computed[-1] is nn.Tanh](x)


def started(seed: int = 0, **options: Any) -> tuple[SupernetHost, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    host = SupernetHost(net, optimizer, lambda: 40, seed=seed)
    host.start(Options(complexity=lambda a: 1 + (a["layer"] is nn.Tanh), **options))
    return host, optimizer


def update(host: SupernetHost, calls: int = 1) -> None:
    host.optimizer.zero_grad()
    for _ in range(calls):
        host.draw()
        host.supernet(torch.ones(1, 2)).sum().backward()
    host.optimizer.step()


def test_a_subnet_is_drawn_once_an_update_and_computed_at_every_call():
    host, _ = started()
    for _ in range(8):
        update(host, calls=3)
    sampler = UniformSampler(host.space, 0)
    drawn = [sampler.sample()["layer"] for _ in range(8)]
    assert host.supernet.computed == [layer for layer in drawn for _ in range(3)]
    assert {*drawn} == {nn.ReLU, nn.Tanh}


def test_an_update_without_a_draw_is_refused_and_changes_nothing():
    host, optimizer = started()
    update(host)
    weights = copy.deepcopy(host.supernet.state_dict())
    with pytest.raises(RuntimeError, match="no subnet has been drawn for this update: call draw"):
        optimizer.step()
    assert_identical(host.supernet.state_dict(), weights)


@pytest.mark.parametrize("begun", [False, True])
def test_a_checkpoint_continues_also_within_an_update(begun: bool):
    host, optimizer = started()
    for _ in range(5):
        update(host)
    if begun:
        host.draw()
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), host.supernet.state_dict()], file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    other, restored = started(seed=7)
    restored.load_state_dict(state)
    other.supernet.load_state_dict(weights)
    for each in (host, other):
        each.supernet.computed.clear()
        for _ in range(9):
            update(each)
    assert host.supernet.computed == other.supernet.computed
    assert_identical(host.supernet.state_dict(), other.supernet.state_dict())
    assert_identical(optimizer.state_dict(), restored.state_dict())


def test_what_cannot_be_loaded_leaves_the_sampling_as_it_was():
    host, optimizer = started()
    update(host)
    state = optimizer.state_dict()
    before = copy.deepcopy(state["dynamic_sampling"])
    bare = {key: value for key, value in state.items() if key != "dynamic_sampling"}
    other = started(seed=7, gamma_max=3.0)[1].state_dict()
    damaged = state | {"dynamic_sampling": before | {"subnets": [[5]]}}
    for loaded, message in (
        (bare, "no state of the sampling"),
        (other, r"calr.gamma is \[0.333"),
        (damaged, "candidate number 5"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(loaded)
        assert optimizer.state_dict()["dynamic_sampling"] == before


def test_stop_leaves_a_plain_optimizer():
    host, optimizer = started()
    update(host)
    host.stop()
    plain = torch.optim.SGD(host.supernet.parameters(), lr=0.1, momentum=0.9)
    assert optimizer.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(optimizer.state_dict())
    assert {*vars(optimizer)} == {*vars(plain)}
    assert not optimizer._optimizer_step_pre_hooks
    host.stop()
    host.start(Options(complexity=lambda a: 1.0, gamma_by="complexity", bounds=(1, 2)))


def test_the_supernet_is_found_where_the_optimizer_updates_it():
    net = Net()
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(net), "ema": Net()})
    optimizers = [torch.optim.SGD(model[name].parameters(), lr=0.1) for name in ("a", "b")]
    assert find_supernet(model, optimizers) == (net, optimizers[1])
    net.layers.space, net.layers.activate = net.space, net.activate
    assert find_supernet(model, optimizers)[0] is net, "the outermost one"
