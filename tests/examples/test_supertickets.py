"""Masks of weights against momenta: of every group, of idle parameters, of what grows again."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nas_dynamic import DynamicTraining, MomentumSeparation

FOLDER = Path(__file__).parents[2] / "examples" / "supertickets"
UPDATES = 40
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
}


@pytest.fixture
def Pruning(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("pruning").Pruning
    sys.modules.pop("pruning")


class Training:
    """A supernet of a first layer, one of three paths, and a last layer."""

    def __init__(self, Pruning, make, idle):
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(5))
        self.weights = [layer.weight for layer in self.layers]
        self.optimizer = make(self.weights)
        self.dynamic = DynamicTraining(
            self.optimizer,
            lambda: {"path": self.path},
            momentum=MomentumSeparation("path"),
            idle=idle,
        )
        self.pruning = Pruning(
            self.dynamic, self.weights, sparsity=0.7, begin=6, end=36, every=6, regrow=0.3
        )
        self.generator = torch.Generator().manual_seed(1)

    def update(self):
        """Train a path, and return which it was and the gradients."""
        self.path = int(torch.randint(3, (), generator=self.generator))
        first, last = self.layers[0], self.layers[4]
        self.optimizer.zero_grad()
        x = torch.randn(16, 6, generator=self.generator)
        loss = last(self.layers[1 + self.path](first(x).relu()).relu()).square().mean() - x.mean()
        loss.backward()
        gradients = [None if w.grad is None else w.grad.clone() for w in self.weights]
        self.optimizer.step()
        return self.path, gradients

    def masks(self):
        return [self.pruning.masks[weight].clone() for weight in self.weights]


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_as_one_masked_optimizer_a_group(Pruning, name, idle):
    make = OPTIMIZERS[name]
    training = Training(Pruning, make, idle)
    own = [nn.Parameter(weight.detach().clone()) for weight in training.weights]
    optimizers = [make(own) for _ in range(3)]
    trained = [False] * len(own)
    grown = 0
    for _ in range(UPDATES):
        masks = training.masks()
        path, gradients = training.update()
        for n, (weight, gradient) in enumerate(zip(own, gradients, strict=True)):
            trained[n] |= gradient is not None
            coasts = idle == "coast" and trained[n]
            weight.grad = torch.zeros_like(weight) if gradient is None and coasts else gradient
        optimizers[path].step()
        changed = training.masks()
        grown += sum(
            int((after & ~before).sum()) for before, after in zip(masks, changed, strict=True)
        )
        with torch.no_grad():
            for weight, before, mask in zip(own, masks, changed, strict=True):
                weight.mul_(before).mul_(mask)
                for optimizer in optimizers:
                    for value in optimizer.state.get(weight, {}).values():
                        if torch.is_tensor(value) and value.shape == weight.shape:
                            value.mul_(before).mul_(mask)
        for weight, expected in zip(training.weights, own, strict=True):
            assert torch.equal(weight, expected)
    assert grown > 20
    sizes = [int(mask.sum()) for mask in training.masks()]
    assert sizes == [round(0.3 * 36)] * 5


@pytest.mark.parametrize("idle", ["coast", "freeze"])
def test_what_is_pruned_stays_zero_and_what_grows_has_no_momentum(Pruning, idle):
    training = Training(Pruning, OPTIMIZERS["sgd"], idle)
    before, grown = training.masks(), 0
    for _ in range(UPDATES):
        training.update()
        for weight, old, mask in zip(training.weights, before, training.masks(), strict=True):
            assert not weight[~mask].any()
            for state in training.dynamic.states.values():
                momentum = state.get(weight, {}).get("momentum_buffer")
                if momentum is not None:
                    assert not momentum[~mask].any()
                    assert not momentum[mask & ~old].any()
            assert not weight[mask & ~old].any()
            grown += int((mask & ~old).sum())
        before = training.masks()
    assert grown > 20
    assert len(training.dynamic.states) == 3
    used = [s[w]["momentum_buffer"] for s in training.dynamic.states.values() for w in s if s[w]]
    assert all(momentum.any() for momentum in used)
