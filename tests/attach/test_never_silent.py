"""What is trained is what is said: told subnets, checkpoints of odd classes, lines and warnings."""

from __future__ import annotations

import collections
import copy
import enum
import itertools
import logging
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, SearchSpace, UniformSampler
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    Mixed,
    assert_identical,
    batches,
    complexity,
    make_model,
)
from tests.attach.test_training import Loop, make_calr

SPACE = SearchSpace({f"layer{i}": ["a", "b", "c"] for i in range(4)})


class Paths(nn.Module):
    """A supernet of layer choices, one candidate of which computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.layers = nn.ModuleDict(
            {
                label: nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Tanh(), "c": nn.Linear(4, 4)})
                for label in SPACE.labels
            }
        )

    def forward(self, x: torch.Tensor, architecture: Any) -> torch.Tensor:
        x = self.stem(x)
        for label, layer in self.layers.items():
            x = layer[architecture[label]](x)
        return x


def train(tell: Any, steps: int = 400, set_to_none: bool = True, **options: Any) -> int:
    """Train; `tell(sampled, previous)` is what is told. Return the number of updates."""
    torch.manual_seed(0)
    model = Paths()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    told: dict[str, Any] = {}
    dynamic = DynamicTraining(
        optimizer,
        architecture=lambda: told["architecture"],
        momentum=MomentumSeparation("layer1"),
        **options,
    )
    sampler, previous = UniformSampler(SPACE, 0), SPACE.decode([0, 0, 0, 0])
    for _ in range(steps):
        sampled = sampler.sample()
        told["architecture"] = tell(sampled, previous)
        optimizer.zero_grad(set_to_none=set_to_none)
        model(torch.ones(2, 4), sampled).square().mean().backward()
        optimizer.step()
        previous = sampled
    return dynamic.updates


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("space", [SPACE, None])
def test_a_subnet_that_is_told_rightly_is_never_contradicted(space: Any, set_to_none: bool):
    assert train(lambda sampled, previous: sampled, 500, set_to_none, space=space) == 500


OTHER = UniformSampler(SPACE, 5)
WRONG = {
    "of the step before": lambda sampled, previous: previous,
    "reset by the host": lambda sampled, previous: SPACE.decode([2, 2, 2, 2]),
    "drawn anew": lambda sampled, previous: OTHER.sample(),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_subnet_that_is_told_wrongly_is_noticed(kind: str):
    with pytest.raises(RuntimeError, match="that is told is not the one that is trained"):
        train(WRONG[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert train(WRONG[kind], check_sampled=False) == 400


def test_a_wrong_subnet_of_a_large_space_is_noticed_by_the_choices():
    """No architecture comes twice, so that only the choices can tell."""
    labels = [f"layer{i}" for i in range(8)]
    space = SearchSpace({label: ["a", "b", "c"] for label in labels})
    parameters = {(label, c): nn.Parameter(torch.ones(1)) for label in labels for c in "abc"}
    shared = nn.Parameter(torch.ones(1))

    def updates(wrong: bool) -> int:
        optimizer = torch.optim.SGD([shared, *parameters.values()], lr=0.1, momentum=0.9)
        told: dict[str, Any] = {}
        dynamic = DynamicTraining(
            optimizer, lambda: told["a"], momentum=MomentumSeparation("layer1"), space=space
        )
        sampler = UniformSampler(space, 1)
        drawn = [sampler.sample() for _ in range(300)]
        for previous, sampled in itertools.pairwise(drawn):
            optimizer.zero_grad()
            for p in [shared, *(parameters[pair] for pair in sampled.items())]:
                p.grad = torch.ones(1)
            told["a"] = previous if wrong else sampled
            optimizer.step()
        return dynamic.updates

    assert updates(wrong=False) == 299
    with pytest.raises(RuntimeError, match="none of the choices that `architecture` returned"):
        updates(wrong=True)


def test_parts_that_any_of_several_choices_uses_are_no_contradiction():
    """As the preprocessing of a cell that nodes may take for an input: an 'or' of choices."""
    either, of_choice = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([either, of_choice], lr=0.1, momentum=0.9)
    told: dict[str, Any] = {}
    DynamicTraining(optimizer, lambda: told["a"], momentum=MomentumSeparation("layer1"))
    sampler = UniformSampler(SPACE, 1)
    for _ in range(300):
        told["a"] = sampled = sampler.sample()
        optimizer.zero_grad()
        if "a" in (sampled["layer0"], sampled["layer1"]):
            either.grad = torch.ones(1)
        if sampled["layer2"] == "a":
            of_choice.grad = torch.ones(1)
        optimizer.step()


def test_an_architecture_that_never_changes_is_warned_of_once():
    loop = Loop()
    batch = batches(1)[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(30):
            loop.backward(*batch)
            loop.optimizer.step()
    assert not caught
    loop = Loop(calr=make_calr(total_steps=300))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(250):
            loop.backward(*batch)
            loop.optimizer.step()
    (warning,) = caught
    assert "all 100 updates so far trained one subnet" in str(warning.message)


def test_a_scheduler_curve_under_a_constant_lr_is_warned_of():
    loop = Loop(calr=make_calr(curve="scheduler", total_steps=50))
    with pytest.warns(UserWarning, match="has changed nothing in 5 updates, since the lr has been"):
        loop.train(8)


class OwnCheckpoints(torch.optim.AdamW):
    """Saves and loads by itself and calls none of torch's hooks, as bitsandbytes' optimizers."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.needed_to_load = "attribute"

    def state_dict(self) -> dict[str, Any]:
        numbers = {p: i for i, p in enumerate(p for g in self.param_groups for p in g["params"])}
        groups = [{**g, "params": [numbers[p] for p in g["params"]]} for g in self.param_groups]
        return {"state": {numbers[p]: s for p, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.needed_to_load
        state_dict = copy.deepcopy(state_dict)
        if set(state_dict) != {"state", "param_groups"}:
            raise ValueError("unknown keys")
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        self.state.update({parameters[i]: s for i, s in state_dict["state"].items()})
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})


def test_a_class_that_saves_and_loads_by_itself_resumes_exactly():
    straight, first = Loop(OwnCheckpoints), Loop(OwnCheckpoints)
    straight.train(10)
    first.train(5)
    saved = copy.deepcopy(first.everything())
    resumed = Loop(OwnCheckpoints)
    resumed.model.load_state_dict(saved["weights"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    assert resumed.dynamic.updates == 5
    resumed.train(5, start=5)
    assert_identical(resumed.everything(), straight.everything())
    other = Loop(OwnCheckpoints, calr=make_calr(total_steps=99))
    with pytest.raises(ValueError, match="total_steps is 40 in the checkpoint and 99 here"):
        other.optimizer.load_state_dict(saved["optimizer"])


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit", "SGD8bit"])
def test_bitsandbytes_resumes_exactly(name: str):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    options = {"momentum": 0.9} if name == "SGD8bit" else {}

    def loop() -> Loop:
        return Loop(getattr(bitsandbytes.optim, name), calr=make_calr(), **options)

    straight, first, resumed = loop(), loop(), loop()
    straight.train(8)
    first.train(4)
    saved = copy.deepcopy(first.everything())
    resumed.model.load_state_dict(saved["weights"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    assert (resumed.dynamic.updates, resumed.dynamic.groups) == (4, first.dynamic.groups)
    resumed.train(4, start=4)
    assert_identical(resumed.model.state_dict(), straight.model.state_dict())


def test_a_training_may_be_extended_where_that_is_asked_for():
    first = Loop(calr=make_calr(total_steps=8))
    first.train(8)
    saved = first.everything()
    longer = Loop(calr=make_calr(total_steps=16))
    with pytest.raises(ValueError, match="To train for more steps, attach with extend=True"):
        longer.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    longer.dynamic.detach()
    longer.attach(make_calr(total_steps=16), extend=True)
    longer.model.load_state_dict(saved["weights"])
    longer.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    longer.train(8, start=8)
    assert longer.dynamic.updates == 16
    last = longer.dynamic.last
    assert last.factor[0] == pytest.approx((1 / 16) ** last.gamma)
    shorter = Loop(attach=False)
    shorter.attach(make_calr(total_steps=8), extend=True)
    with pytest.raises(ValueError, match="total_steps is 16 in the checkpoint and 8 here"):
        shorter.optimizer.load_state_dict(longer.optimizer.state_dict())


def test_attachment_says_what_is_attached(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="nas_dynamic"):
        loop = Loop(space=SearchSpace({"layer1": ["a", "b", "c"], "layer2": ["a", "b"]}))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(repr(loop.dynamic))
    for fact in (
        "SGD",
        "polynomial over 40 steps",
        "γ 4 to 0.25 by complexity of 2 to 9",
        "momentum by 'layer1', 3 groups",
        "idle parameters coast",
        "each group keeps 0.0 MiB",
    ):
        assert fact in line, fact
    with caplog.at_level(logging.WARNING, logger="nas_dynamic"):
        caplog.clear()
        Loop()
        assert not caplog.records


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2


@pytest.mark.parametrize(
    "candidates",
    [[nn.ReLU, nn.GELU], [Size.SMALL, Size.LARGE], [np.int64(3), np.int64(5)], [[1, 2], [3, 4]]],
    ids=["classes", "enums", "numpy", "lists"],
)
def test_candidates_of_any_kind_are_grouped_saved_and_resumed(candidates: Any, tmp_path: Any):
    space = SearchSpace({"layer1": candidates, "layer2": [1, 2]})
    weight = nn.Parameter(torch.ones(2))

    def attached() -> tuple[torch.optim.Optimizer, DynamicTraining]:
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        sampler = UniformSampler(space, 0)
        return optimizer, DynamicTraining(
            optimizer,
            architecture=lambda: (
                {label: values[0] for label, values in {**told}.items()}
                if told
                else sampler.sample()
            ),
            momentum=MomentumSeparation("layer1"),
            space=space,
        )

    told: dict[str, Any] = {}
    optimizer, dynamic = attached()
    for _ in range(6):
        weight.grad = torch.ones(2)
        optimizer.step()
    assert len(dynamic.groups) == 2
    torch.save(optimizer.state_dict(), tmp_path / "saved.pt")
    dynamic.detach()
    optimizer, dynamic = attached()
    optimizer.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
    assert len(dynamic.groups) == 2
    weight.grad = torch.ones(2)
    optimizer.step()


@pytest.mark.parametrize(
    ("scalar", "candidates"),
    [
        (np.int64, [3, 5]),
        (np.float32, [0.5, 2.0]),
        (np.str_, ["conv3", "conv5"]),
        (torch.tensor, [3, 5]),
        (lambda pair: (np.int64(pair[0]), pair[1]), [(3, "a"), (5, "a")]),
    ],
)
def test_a_scalar_of_numpy_or_torch_is_the_candidate_that_it_equals(scalar: Any, candidates: Any):
    """Such as of `rng.choice` in one update, and of `max(candidates)` in the next."""
    told: dict[str, Any] = {}
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    calr = CaLR(complexity=lambda a: 2, total_steps=9, bounds=(1, 3))
    dynamic = DynamicTraining(
        optimizer, lambda: told, calr=calr, momentum=MomentumSeparation("layer1")
    )
    for candidate in [*candidates, *map(scalar, candidates), *candidates]:
        told["layer1"] = candidate
        weight.grad = torch.ones(1)
        optimizer.step()
        assert type(dynamic.last.architecture["layer1"]) is type(candidates[0])
    assert dynamic.groups == candidates


@pytest.mark.parametrize(
    "told", [[0, 2, 1], "conv3", ("conv3", "conv5"), 3, np.array([0, 1]), torch.tensor([0, 1])]
)
def test_an_architecture_that_is_no_mapping_is_named(told: Any):
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    DynamicTraining(optimizer, lambda: told, momentum=MomentumSeparation("layer1"))
    weight.grad = torch.ones(1)
    with pytest.raises(TypeError, match=r"for a subnet; return a mapping from label to candidate"):
        optimizer.step()


@pytest.mark.parametrize("replaced", ["state", "class's own load_state_dict"])
def test_a_state_that_the_host_replaces_is_refused(replaced: str):
    """Of one group alone: the others would go on with their momenta."""
    loop = Loop()
    loop.train(6)
    before = loop.everything()
    kept = loop.optimizer.state
    if replaced == "state":
        loop.optimizer.state = collections.defaultdict(dict)
    else:
        plain = {k: v for k, v in before["optimizer"].items() if k != "dynamic_training"}
        torch.optim.SGD.load_state_dict(loop.optimizer, plain)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"state was replaced .* Clear those of DynamicTr"):
            loop.train(1, start=6)
    loop.optimizer.state = kept
    assert_identical(loop.everything(), before)
    for state in loop.dynamic.states.values():
        state.clear()
    loop.train(6, start=6)


def test_a_candidate_that_is_not_hashable_is_named():
    with pytest.raises(ValueError, match=r"candidate {'ks': 3} of 'block' is a dict, which is not"):
        SearchSpace({"block": [{"ks": 3}]})


def test_a_label_with_more_candidates_than_groups_may_be_is_refused_at_attachment():
    space = SearchSpace({"width": range(100), "depth": [1, 2]})
    optimizer = torch.optim.SGD(make_model(Mixed).parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"'width' has 100 candidates, .* max_groups is 64"):
        DynamicTraining(
            optimizer,
            dict,
            calr=CaLR(complexity, total_steps=9, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("width"),
            space=space,
        )
    assert not optimizer._optimizer_step_pre_hooks
