"""Group rules, and the state of every group as the optimizer's own counters see it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import nn

from nas_dynamic import CaLR, ComplexityBins, MomentumSeparation, SearchSpace
from nas_dynamic.attach.group_states import GroupStates
from nas_dynamic.grouping import default_label
from nas_dynamic.space import is_mixture


def test_a_label_groups_by_its_candidate():
    rule = MomentumSeparation("layer1")
    assert rule.group({"layer1": "conv3", "layer2": "skip"}) == "conv3"
    assert rule.group({"layer1": ("conv", 3), "layer2": "skip"}) == ("conv", 3)
    assert rule.definition() == {"label": "layer1"}


def test_a_callable_groups_by_its_value():
    rule = MomentumSeparation(lambda a: (a["depth"], a["width"] > 8))
    assert rule.group({"depth": 2, "width": 16}) == (2, True)


@pytest.mark.parametrize("key", ["a", 3, 2.5, True, None, (), ("a", (1, None))])
def test_plain_keys_are_groups(key: Any):
    assert MomentumSeparation(lambda a: key).group({}) == key


@pytest.mark.parametrize(
    "key", [[1], {"a": 1}, np.int64(3), torch.tensor(3), ("a", [1]), object(), math.nan]
)
def test_keys_that_a_checkpoint_cannot_hold_are_refused(key: Any):
    with pytest.raises(ValueError, match="so that it can be saved; got"):
        MomentumSeparation(lambda a: key).group({})


def test_bad_rules_are_named():
    with pytest.raises(ValueError, match="group_by must be a label or a callable, got int"):
        MomentumSeparation(3)
    with pytest.raises(ValueError, match="max_groups must be at least 1, got 0"):
        MomentumSeparation("layer1", max_groups=0)
    with pytest.raises(ValueError, match="no choice 'layer9' to group by; labels are 'layer1'"):
        MomentumSeparation("layer9").group({"layer1": "a"})


@pytest.mark.parametrize(
    "weights", [{"conv3": 0.8, "conv5": 0.2}, torch.tensor([0.8, 0.2]), np.array([0.8, 0.2])]
)
@pytest.mark.parametrize("group_by", ["layer1", lambda a: "one"])
def test_a_mixture_of_subnets_is_of_no_group(weights: Any, group_by: Any):
    with pytest.raises(ValueError, match="a mixture of subnets, and of no group"):
        MomentumSeparation(group_by).group({"layer1": weights, "layer2": "skip"})


def test_numbers_of_numpy_are_no_mixture():
    assert not is_mixture({"width": np.int64(5), "ratio": np.float64(0.5), "skip": np.bool_(True)})


increasing = st.lists(st.floats(0.01, 1e9), min_size=1, max_size=6, unique=True).map(sorted)


@given(increasing, st.floats(0.001, 1e10))
def test_bins_are_those_of_numpy(edges: list[float], complexity: float):
    bins = ComplexityBins(lambda a: complexity, edges)
    assert bins({}) == np.digitize(complexity * (1 + 1e-9), edges)


def test_complexities_that_differ_by_rounding_are_the_same():
    """Sums of .1 and .3 in another order, as those of a latency table."""
    space = SearchSpace({f"layer{i}": [0.1, 0.3] for i in range(9)})
    latency = lambda a: sum(a.values())  # noqa: E731
    latencies = [latency(architecture) for architecture in space]
    assert len(set(latencies)) > 10
    assert default_label(space, latency) == "layer4"
    bins = ComplexityBins.quantiles(space, latency, groups=4)
    calr = CaLR(latency, total_steps=9, population=latencies)
    longer = [sum(value == 0.3 for value in architecture.values()) for architecture in space]
    for values in ([bins(a) for a in space], [round(calr.gamma(a), 9) for a in space]):
        assert len(set(zip(longer, values, strict=True))) == 10
    ranks = (rankdata(longer) - 0.5) / len(longer)
    gammas = [calr.gamma(architecture) for architecture in space]
    np.testing.assert_allclose(np.log(gammas), math.log(4) * (1 - 2 * ranks), atol=1e-12)
    assert (calr.c_min, calr.c_max) == (min(latencies), max(latencies))


def test_quantile_bins_are_filled_equally():
    space = SearchSpace({f"layer{i}": range(1, 8) for i in range(8)})

    def complexity(architecture):
        return float(sum(value**2 for value in architecture.values()))

    bins = ComplexityBins.quantiles(space, complexity, groups=4)
    generator = np.random.default_rng(1)
    counts = np.bincount([bins(space.sample(generator)) for _ in range(2000)], minlength=4)
    assert len(counts) == 4
    assert counts.min() > 400
    again = ComplexityBins.quantiles(space, complexity, groups=4)
    assert again.edges == bins.edges
    assert MomentumSeparation(bins).definition() == {
        "rule": "ComplexityBins",
        "edges": bins.edges,
    }


@pytest.mark.parametrize("edges", [[], [2, 1], [1, 1]])
def test_edges_that_do_not_increase_are_refused(edges: list[float]):
    with pytest.raises(ValueError, match="edges must increase"):
        ComplexityBins(lambda a: 1, edges)


def test_bins_of_a_bad_complexity_are_refused():
    with pytest.raises(ValueError, match="positive finite number, got nan"):
        ComplexityBins(lambda a: math.nan, [1])({})


def test_the_default_label_is_the_widest_choice_and_the_middle_one_of_equals():
    space = SearchSpace({f"layer{i}": ["skip", "conv"] for i in range(5)})
    weights = {"layer0": 1, "layer1": 3, "layer2": 1, "layer3": 3, "layer4": 3}

    def complexity(a):
        return 1.0 + sum(weights[label] for label, op in a.items() if op == "conv")

    assert default_label(space, complexity) == "layer3"
    assert default_label(space, lambda a: 1.0 + sum(op == "conv" for op in a.values())) == "layer2"
    weights["layer0"] = 10
    assert default_label(space, complexity) == "layer0"


def test_the_default_label_has_several_candidates_where_there_are_any():
    space = SearchSpace({"pool": ["max", "avg"], "stem": ["conv"], "head": ["linear"]})
    assert default_label(space, lambda a: 1.0) == "pool"
    assert default_label(space.restrict({"pool": ["max"]}), lambda a: 1.0) == "stem"


def one_step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "after plain steps"])
@pytest.mark.parametrize("optimizer_class", [timm.optim.Adan, timm.optim.Lamb])
def test_counters_in_param_groups_belong_to_the_group(optimizer_class: Any, late: bool):
    """Adan replaces a number in `param_groups`, LAMB counts a tensor up in place."""
    optimizer = optimizer_class([nn.Parameter(torch.ones(3, 3))], lr=0.1)
    already = 2 if late else 0
    for _ in range(already):
        one_step(optimizer)
    states = GroupStates(optimizer, max_groups=8)
    for group in "aabaab":
        states.select(group)
        one_step(optimizer)
        states.keep_counters()
        states.count_update()
    assert float(states.counters("a")[0]["step"]) == already + 4
    assert float(states.counters("b")[0]["step"]) == already + 2
    assert states.updates() == {"a": 4, "b": 2}

    restored = GroupStates(optimizer, max_groups=8)
    saved = copy.deepcopy(states.state_dict())
    restored.restore(restored.read(saved, optimizer.state_dict()["param_groups"]))
    for group, count in {"a": 4, "b": 2, "new": 0}.items():
        restored.select(group)
        assert float(optimizer.param_groups[0].get("step", 0)) == already + count


class Estimating(torch.optim.Optimizer):
    """Like Prodigy: an estimate in `param_groups` that only some updates write."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1, "estimate": 1.0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                steps = self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1
                if steps == 3:
                    group["estimate"] += 1.0


def test_a_counter_that_a_group_has_not_written_yet_is_as_at_attachment():
    optimizer = Estimating([nn.Parameter(torch.ones(2))])
    states = GroupStates(optimizer, max_groups=8)
    seen: dict[str, list[float]] = {"a": [], "b": []}
    for group in "abaaabbab":
        states.select(group)
        one_step(optimizer)
        states.keep_counters()
        states.count_update()
        seen[group].append(optimizer.param_groups[0]["estimate"])
    assert seen == {"a": [1, 1, 2, 2, 2], "b": [1, 1, 2, 2]}


def test_a_switch_moves_pointers_and_hyperparameters_stay():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    states = GroupStates(optimizer, max_groups=2)
    states.select("a")
    one_step(optimizer)
    states.keep_counters()
    buffer = optimizer.state[parameter]["momentum_buffer"]
    states.select("b")
    assert not optimizer.state
    optimizer.param_groups[0]["momentum"] = 0.5  # as a scheduler does, between updates
    states.select("a")
    assert optimizer.state[parameter]["momentum_buffer"] is buffer
    assert optimizer.param_groups[0]["momentum"] == 0.5
    states.select("b")
    states.check("a")
    with pytest.raises(RuntimeError, match=r"'c' would be group number 3; .* coarser"):
        states.check("c")
