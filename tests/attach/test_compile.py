"""Compiled supernets and optimizer steps, activation checkpointing and channels_last."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    CHOICES,
    Mixed,
    assert_identical,
    batches,
    complexity,
    make_model,
)

# Its name in torch 2.6 is the older one.
LIMIT = (
    "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
)

# Every subnet, and each a second time: 3 · 2 of them.
ALL = [{"layer1": a, "layer2": b} for a in CHOICES["layer1"] for b in CHOICES["layer2"]] * 2


class Loop:
    def __init__(self, optimizer: str = "sgd") -> None:
        self.model = make_model(Mixed)
        parameters = self.model.parameters()
        self.optimizer: Any = (
            torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
            if optimizer == "sgd"
            else torch.optim.AdamW(parameters, lr=0.01)
        )
        self.forward: Any = self.model
        self.sampled: dict[str, str] = {}
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.sampled,
            calr=CaLR(complexity, total_steps=40, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1"),
        )

    def train(self) -> Loop:
        for number, (x, y, _) in enumerate(batches(len(ALL))):
            self.sampled = ALL[number]
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.forward(x, self.sampled), y).backward()
            self.optimizer.step()
        return self


class CountedGraphs:
    """A backend of torch.compile that runs the graph as it is."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_supernet_has_a_graph_a_subnet_and_equals_the_eager_one():
    loop, eager = Loop(), Loop().train()
    counted = CountedGraphs()
    loop.forward = torch.compile(loop.model, backend=counted)
    loop.train()
    assert_identical(loop.model.state_dict(), eager.model.state_dict())
    assert counted.graphs == len(ALL) / 2


def test_beyond_the_recompile_limit_subnets_run_eagerly_and_right():
    loop, eager = Loop(), Loop().train()
    counted = CountedGraphs()
    loop.forward = torch.compile(loop.model, backend=counted)
    with torch._dynamo.config.patch({LIMIT: 3}):
        loop.train()
    assert counted.graphs < len(ALL) / 2
    assert_identical(loop.model.state_dict(), eager.model.state_dict())


def test_compiled_candidates_need_one_graph_a_kind_however_many_subnets_there_are():
    probe = CountedGraphs()
    layer = nn.Linear(1, 1)
    layer.compile(backend=probe)
    layer(torch.ones(1, 1))
    if not probe.graphs:
        pytest.skip("this torch, as 2.6, leaves modules that are torch's own uncompiled")
    loop, eager = Loop(), Loop().train()
    counted = CountedGraphs()
    candidates = [c for label in CHOICES for c in loop.model.get_submodule(label).values()]
    for candidate in candidates:
        candidate.compile(backend=counted)
    with torch._dynamo.config.patch({LIMIT: len(candidates)}):
        loop.train()
    # Candidates that look alike share a graph, and Identity has none.
    assert counted.graphs == len({repr(c) for c in candidates}) - 1
    assert_identical(loop.model.state_dict(), eager.model.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("around", ["step", "update"])
def test_a_compiled_optimizer_step_is_refused(optimizer: str, around: str):
    """It would train on with the state of the group that it was traced with."""
    loop, eager = Loop(optimizer), Loop(optimizer)
    step = loop.optimizer.step
    compiled = torch.compile(step if around == "step" else lambda: step(), backend="eager")
    loop.optimizer.step = compiled
    with pytest.raises(RuntimeError, match=r"optimizer\.step\(\) is compiled"):
        loop.train()
    assert_identical(loop.model.state_dict(), eager.model.state_dict())
    assert loop.dynamic.updates == 0
    loop.optimizer.step = step
    assert_identical(loop.train().model.state_dict(), eager.train().model.state_dict())


def test_activation_checkpointing_recomputes_the_same_subnet():
    loop, plain = Loop(), Loop().train()
    loop.forward = lambda x, sampled: checkpoint(
        loop.model, x, copy.copy(sampled), use_reentrant=False
    )
    assert_identical(loop.train().model.state_dict(), plain.model.state_dict())


def test_channels_last_stays_and_changes_nothing_but_rounding():
    loop, plain = Loop(), Loop().train()
    loop.model.to(memory_format=torch.channels_last)
    loop.train()
    buffers = [
        state["momentum_buffer"]
        for parameter, state in loop.optimizer.state.items()
        if parameter.dim() == 4
    ]
    assert buffers
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in buffers)
    torch.testing.assert_close(loop.model.state_dict(), plain.model.state_dict())
