"""The seam: options, what is attached by them, and the adapter of the documentation."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
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
    calr, momentum = build(Loop(Layers()), Options(momentum=True))
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
        "keep_mean_lr": True,
    }
    assert changes.keys() == {option.name for option in dataclasses.fields(Options)}
    host = Loop(Layers())
    host.multi_subnet = True
    training = attach(host, Options.of(**changes))
    calr, momentum = training.calr, training.momentum
    assert (calr.gamma_max, calr.gamma_min, calr.curve, calr.warmup_steps) == (3, 0.5, "cosine", 2)
    assert (calr.total_steps, calr.c_min, calr.c_max, calr.anneal) == (7, 10, 1000, "loss")
    assert calr.complexity({}) == 100
    # γ of 100, half-way between the bounds, is 1.75.
    mean = np.mean([((1 + math.cos(math.pi * p)) / 2) ** 1.75 for p in np.linspace(0, 1, 9999)])
    assert calr.start == pytest.approx(1 / mean, abs=1e-3)
    assert training.extend
    assert (momentum.group_by, momentum.max_groups, training.idle) == (bins, 5, "freeze")
    host.supernet.layers["layer1"]["a"][0].weight.grad = torch.full((2, 6), torch.nan)
    host.supernet.sampled = host.space.decode([0, 0])
    training.loss_weights([host.supernet.sampled])
    with pytest.warns(UserWarning, match="is skipped"):
        host.optimizer.step()
    assert training.skipped == 1


class Constant(Loop):
    """A host that knows that it has no lr scheduler."""

    def has_scheduler(self) -> bool:
        return False


class Scheduled(Loop):
    def has_scheduler(self) -> bool:
        return True


@pytest.mark.parametrize("gamma_by", ["rank", "complexity"])
@pytest.mark.parametrize("curve", ["polynomial", "cosine-power", lambda p: (1 - p) ** 3])
def test_a_constant_lr_is_the_mean_of_what_calr_makes_of_it(gamma_by, curve):
    options = Options(
        gamma_by=gamma_by, curve=curve, gamma_max=3, warmup_steps=50, keep_mean_lr=True
    )
    calr, _ = build(Constant(Layers(), steps=2050), options)
    space = Layers().space
    factors = [calr.factor(a, step) for a in space for step in range(50, 2050)]
    assert np.mean(factors) == pytest.approx(1, abs=2e-3)
    assert calr.factor(space.decode([0, 0]), 49) == calr.start, "the end of the warm-up"


@pytest.mark.parametrize(
    ("host", "changes", "start"),
    [
        (Constant, {}, 2),
        (Constant, {"keep_mean_lr": False}, 1),
        (Constant, {"gamma_by": "complexity"}, 1),
        (Scheduled, {}, 1),
        (Scheduled, {"keep_mean_lr": True}, 2),
        (Loop, {}, 1),  # of whose lr nothing is known
        (Loop, {"keep_mean_lr": True}, 2),
    ],
)
def test_the_mean_lr_is_kept_by_default_where_the_lr_is_known_to_be_constant(host, changes, start):
    calr, _ = build(host(Layers()), Options(**changes))
    assert calr.start == start
    assert ("start" in calr.definition()) == (start != 1), "older checkpoints have none"


def test_what_becomes_of_a_constant_lr_is_said_at_attachment(caplog):
    caplog.set_level("INFO", "nas_dynamic")
    paper = {"gamma_by": "complexity"}
    calr, _ = build(Constant(Layers()), Options(**paper))
    kept = 0.1 / np.mean([1 / (1 + calr.gamma(a)) for a in Layers().space])  # of (1 − p)^γ
    for changes in ({}, {"keep_mean_lr": False}, paper, paper | {"keep_mean_lr": True}):
        attach(Constant(Layers()), Options(**changes)).detach()
    attach(Loop(Layers()), Options()).detach()
    attach(Constant(Layers()), Options(calr=False)).detach()
    assert [text for text in caplog.messages if text.startswith("lr ")] == [
        "lr 0.1, constant, → starts at 0.2, decays to 0, mean 0.1 (see keep_mean_lr)",
        "lr 0.1, constant, → starts at 0.1, decays to 0, mean 0.05 (see keep_mean_lr)",
        "lr 0.1, constant, → starts at 0.1, decays to 0 (see keep_mean_lr)",
        f"lr 0.1, constant, → starts at {kept:.4f}, decays to 0, mean 0.1 (see keep_mean_lr)",
    ]
    assert "CaLR: polynomial from 2 × lr over 10 steps" in caplog.messages[0]


def test_a_scheduler_that_is_known_to_be_missing_is_refused():
    with pytest.raises(ValueError, match="there is none here"):
        build(Constant(Layers()), Options(curve="scheduler"))
    build(Constant(Layers()), Options(curve="scheduler", calr=False))
    for host in (Scheduled, Loop):
        build(host(Layers()), Options(curve="scheduler"))


def test_momentum_is_one_unless_it_is_asked_for():
    host = Loop(Layers())
    assert build(host, Options())[1] is None
    assert build(host, Options(momentum=True))[1] is not None
    assert build(host, Options(group_by="layer1"))[1] is not None
    assert build(host, Options(momentum=False, group_by="layer1"))[1] is None


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
        ({"momentum": "on"}, "momentum must be True, False or 'auto', got 'on'"),
        ({"gamma_by": "size"}, "gamma_by must be 'rank' or 'complexity'"),
        ({"bounds": (1, 2)}, "give gamma_by='complexity' as well"),
        ({"bounds": (2, 1), "gamma_by": "complexity"}, "which is reversed"),
        ({"group_by": 3}, "group_by must be a label or a callable, got int"),
        ({"max_groups": 0}, "max_groups must be at least 1"),
        ({"idle": "sleep"}, "idle must be 'auto', 'coast' or 'freeze'"),
        ({"nonfinite": "clip"}, "nonfinite must be 'ignore', 'raise' or 'skip'"),
        ({"check_ranks_every": 0}, "must be 1 or more"),
        ({"keep_mean_lr": True, "curve": "scheduler"}, "for a decay of CaLR's own"),
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
    supernet, callback = Layers(), names["DynamicSupernet"](seed=3, idle=idle, momentum=True)
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
        optimizer.zero_grad(set_to_none=idle != "coast")
        reference.activate(update.architecture)
        for batch in batches[2 * (step % 3) : 2 * (step % 3) + 2]:
            ((reference(batch) - batch).square().mean() / 2).backward()
        optimizer.step()
    assert len(optimizers) > 1
    assert_identical(supernet.state_dict(), reference.state_dict())
    assert not loop.optimizer._optimizer_step_pre_hooks, "detached"
