"""The seam: options, what is attached by them, and the adapter of the documentation."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas_dynamic import ComplexityBins, SearchSpace
from nas_dynamic.host import Host, Options, Supernet, attach, build, takes_options
from tests.attach.reference import assert_identical

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = {"a": 2, "b": 4, "c": 8}


class Layers(nn.Module):
    """A supernet of two layers, each a choice of three widths."""

    def __init__(self) -> None:
        super().__init__()
        self.space = SearchSpace({"layer1": list(WIDTHS), "layer2": list(WIDTHS)})
        self.sampled = None
        self.layers = nn.ModuleDict(
            {
                label: nn.ModuleDict(
                    {c: nn.Sequential(nn.Linear(6, w), nn.Linear(w, 6)) for c, w in WIDTHS.items()}
                )
                for label in self.space.labels
            }
        )
        self.active = self.space.decode([0, 0])

    def activate(self, architecture: Any) -> None:
        self.active = dict(architecture)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for label, layer in self.layers.items():
            x = layer[self.active[label]](x)
        return x

    def subnet_parameters(self) -> Any:
        return lambda a: sum(13 * WIDTHS[candidate] + 6 for candidate in a.values())


class Loop(Host):
    """A host as small as can be."""

    def __init__(self, supernet: Layers, steps: int | None = 10) -> None:
        self.supernet, self.space, self.steps = supernet, supernet.space, steps
        self.optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)

    def sampled(self) -> Any:
        return self.supernet.sampled

    def complexity(self, measure: str) -> Any:
        return self.supernet.subnet_parameters()

    def total_steps(self) -> int | None:
        return self.steps


def test_the_defaults_are_those_of_the_method():
    calr, momentum = build(Loop(Layers()), Options())
    sizes = sorted(Layers().subnet_parameters()(a) for a in Layers().space)
    assert (calr.c_min, calr.c_max, calr.total_steps) == (sizes[0], sizes[-1], 10)
    gammas = [calr.gamma(architecture) for architecture in Layers().space]
    assert sum(map(math.log, gammas)) == pytest.approx(0, abs=1e-9), "by rank"
    assert (momentum.group_by, momentum.max_groups) == ("layer2", 64)


def test_every_option_reaches_what_it_is_of():
    bins = ComplexityBins(Layers().subnet_parameters(), [60])
    changes = {
        "gamma_max": 3.0,
        "gamma_min": 0.5,
        "curve": "cosine",
        "warmup_steps": 2,
        "total_steps": 7,
        "gamma_by": "complexity",
        "bounds": (10, 1000),
        "group_by": bins,
        "max_groups": 5,
        "idle": "freeze",
        "nonfinite": "skip",
        "complexity": lambda a: 100.0,
        "calr": True,
        "momentum": True,
        "anneal": "loss",
        "check_ranks_every": 7,
        "check_sampled": False,
        "extend": True,
    }
    assert changes.keys() == {option.name for option in dataclasses.fields(Options)}
    host = Loop(Layers())
    host.multi_subnet = True
    training = attach(host, Options.of(**changes))
    calr, momentum = training.calr, training.momentum
    assert (calr.gamma_max, calr.gamma_min, calr.curve, calr.warmup_steps) == (3, 0.5, "cosine", 2)
    assert (calr.total_steps, calr.c_min, calr.c_max, calr.anneal) == (7, 10, 1000, "loss")
    assert calr.complexity({}) == 100
    assert training.extend
    assert (momentum.group_by, momentum.max_groups, training.idle) == (bins, 5, "freeze")
    host.supernet.layers["layer1"]["a"][0].weight.grad = torch.full((2, 6), torch.nan)
    host.supernet.sampled = host.space.decode([0, 0])
    training.loss_weights([host.supernet.sampled])
    with pytest.warns(UserWarning, match="is skipped"):
        host.optimizer.step()
    assert training.skipped == 1


def test_parts_that_are_off_are_not_attached():
    assert build(Loop(Layers()), Options(calr=False, momentum=False)) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma_max": 0}, "gamma_max must be a positive number"),
        ({"gamma_min": 5}, "0 < gamma_min <= gamma_max"),
        ({"curve": "cubic"}, "unknown curve 'cubic'"),
        ({"warmup_steps": -1}, "0 <= warmup_steps"),
        ({"warmup_steps": 7, "total_steps": 7}, "warmup_steps < total_steps = 7"),
        ({"warmup_steps": 1, "curve": "scheduler"}, "which warms up itself"),
        ({"total_steps": 0}, "total_steps must be a whole number, at least 1"),
        ({"anneal": "weights"}, "anneal must be 'lr' or 'loss'"),
        ({"complexity": "flops"}, "complexity must be 'parameters', 'macs' or a function"),
        ({"gamma_by": "size"}, "gamma_by must be 'rank' or 'complexity'"),
        ({"bounds": (1, 2)}, "give gamma_by='complexity' as well"),
        ({"bounds": (2, 1), "gamma_by": "complexity"}, "which is reversed"),
        ({"group_by": 3}, "group_by must be a label or a callable, got int"),
        ({"max_groups": 0}, "max_groups must be at least 1"),
        ({"idle": "sleep"}, "idle must be 'auto', 'coast' or 'freeze'"),
        ({"nonfinite": "clip"}, "nonfinite must be 'ignore', 'raise' or 'skip'"),
        ({"check_ranks_every": 0}, "must be 1 or more"),
    ],
)
def test_a_bad_option_is_refused_before_there_is_a_host(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        Options(**changes)
    assert message in str(error.value)


def test_an_unknown_option_is_named_with_the_nearest():
    with pytest.raises(TypeError, match=r"no option 'gama_max'; did you mean gamma_max\?"):
        Options.of(gama_max=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"group_by": "layer9"},
            "'layer9' is no label of the space; labels are 'layer1'",
        ),
        ({"anneal": "loss"}, "needs a host that weights the losses of several subnets"),
        ({}, "total_steps is needed"),
    ],
)
def test_options_that_do_not_suit_the_host_are_refused(changes: dict[str, Any], message: str):
    host = Loop(Layers(), steps=None)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        attach(host, Options(**changes))
    assert message in str(error.value)
    assert not host.optimizer._optimizer_step_pre_hooks


def test_a_function_shows_the_options_that_it_takes():
    @takes_options
    def entry(model: nn.Module, *, curve: str = "cosine", **options: Any) -> Options:
        return Options.of(curve=curve, **options)

    parameters = inspect.signature(entry).parameters
    names = [option.name for option in dataclasses.fields(Options)]
    assert [*parameters] == ["model", "curve", *(name for name in names if name != "curve")]
    assert parameters["gamma_max"].default == 4.0
    assert parameters["curve"].default == "cosine"
    assert entry(nn.Identity(), gamma_max=3).gamma_max == 3


class Events:
    """The loop of the documentation's adapter: two batches an update, and four events."""

    def __init__(self, supernet: Layers, callback: Any) -> None:
        self.model = nn.Sequential(supernet)
        self.optimizer = sgd(supernet)
        self.total_steps = 6
        self.logged: list[dict[str, float]] = []
        self.updates: list[Any] = []
        self.callback = callback

    def fit(self, batches: list[torch.Tensor]) -> None:
        self.callback.on_train_start(self)
        for number, batch in enumerate(batches * 2):
            self.callback.on_batch_start(self)
            loss = (self.model(batch) - batch).square().mean()
            (loss / 2).backward()
            if number % 2:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.updates.append(self.callback.host.training.last)
            self.callback.on_batch_end(self, loss)
        self.callback.on_train_end(self)


def sgd(supernet: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("idle", ["coast", "freeze"])
def test_the_adapter_of_the_documentation_equals_one_optimizer_a_group(idle: str):
    code = (DOCS / "adapters.md").read_text().split("<!-- adapter -->")[1].split("```")[1]
    names: dict[str, Any] = {}
    exec(code.removeprefix("python"), names)
    batches = [*torch.randn(48, 6, generator=torch.Generator().manual_seed(1)).split(8)]
    torch.manual_seed(0)
    supernet, callback = Layers(), names["DynamicSupernet"](seed=3, idle=idle)
    assert isinstance(supernet, Supernet)
    reference = copy.deepcopy(supernet)
    loop = Events(supernet, callback)
    loop.fit(batches)

    calr, momentum = build(callback.host, callback.options)
    optimizers: dict[Any, torch.optim.Optimizer] = {}
    assert calr.total_steps == len(loop.updates) == len(loop.logged) == 6
    for step, update in enumerate(loop.updates):
        optimizer = optimizers.setdefault(momentum.group(update.architecture), sgd(reference))
        optimizer.param_groups[0]["lr"] = 0.05 * calr.factor(update.architecture, step)
        assert loop.logged[step]["dynamic/lr"] == optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        reference.activate(update.architecture)
        for batch in batches[2 * (step % 3) : 2 * (step % 3) + 2]:
            ((reference(batch) - batch).square().mean() / 2).backward()
        if idle == "coast":
            for p in reference.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        optimizer.step()
    assert len(optimizers) > 1
    assert_identical(supernet.state_dict(), reference.state_dict())
    assert not loop.optimizer._optimizer_step_pre_hooks, "detached"
