"""γ and the factor against the formulas of the paper."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import nn
from torch.optim import lr_scheduler

from nas_dynamic import CaLR, DynamicTraining
from nas_dynamic.calr import CURVES

sizes = st.floats(1e-3, 1e12)
ratios = st.floats(1.001, 1e6)
unit = st.floats(0, 1)


@st.composite
def calrs(draw: Any, **fixed: Any) -> CaLR:
    c_min = draw(sizes)
    gamma_max = draw(st.floats(0.1, 16))
    options = {
        "total_steps": draw(st.integers(1, 10**6)),
        "bounds": (c_min, c_min * draw(ratios)),
        "gamma_max": gamma_max,
        "gamma_min": gamma_max * draw(st.floats(0.01, 1)),
        "curve": draw(st.sampled_from(list(CURVES))),
    }
    return CaLR(lambda a: a["c"], **options | fixed)


def between(calr: CaLR, position: float) -> dict[str, float]:
    """Return the architecture at a position, 0 to 1, between the bounds in log-complexity."""
    return {"c": calr.c_min * (calr.c_max / calr.c_min) ** position}


@given(calrs(), unit)
def test_gamma_is_the_formula(calr: CaLR, position: float):
    architecture = between(calr, position)
    c = min(max(architecture["c"], calr.c_min), calr.c_max)
    span = calr.gamma_max - calr.gamma_min
    expected = calr.gamma_max - span * math.log(c / calr.c_min) / math.log(calr.c_max / calr.c_min)
    assert calr.gamma(architecture) == pytest.approx(expected, rel=1e-9)


@given(calrs())
def test_gamma_is_exact_at_the_bounds_and_their_geometric_mean(calr: CaLR):
    assert calr.gamma({"c": calr.c_min}) == calr.gamma_max
    assert calr.gamma({"c": calr.c_max}) == pytest.approx(calr.gamma_min, rel=1e-12)
    middle = (calr.gamma_max + calr.gamma_min) / 2
    assert calr.gamma(between(calr, 0.5)) == pytest.approx(middle, rel=1e-6)


def test_gamma_with_the_default_of_the_paper():
    calr = CaLR(lambda a: a["c"], total_steps=1, bounds=(1, 16))
    gammas = [calr.gamma({"c": c}) for c in (1, 2, 4, 8, 16)]
    assert gammas == [4.0, 3.0625, 2.125, 1.1875, 0.25]


@given(calrs(), unit, unit, st.integers(0, 2 * 10**6))
def test_larger_subnets_keep_more_of_the_lr(calr: CaLR, one: float, other: float, step: int):
    small, large = (between(calr, position) for position in sorted((one, other)))
    assert calr.gamma(small) >= calr.gamma(large)
    assert calr.factor(small, step) <= calr.factor(large, step)


@given(calrs(), st.floats(-3, 4))
def test_complexities_outside_the_bounds_are_clamped(calr: CaLR, position: float):
    assert calr.gamma_min * (1 - 1e-12) <= calr.gamma(between(calr, position)) <= calr.gamma_max


@given(calrs(), unit, st.integers(0, 2 * 10**6))
def test_the_factor_is_finite_and_in_0_to_1_up_to_T_and_beyond(
    calr: CaLR, position: float, step: int
):
    architecture = between(calr, position)
    assert 0 <= calr.factor(architecture, step) <= 1
    assert calr.factor(architecture, 0) == 1
    for beyond in (calr.total_steps, calr.total_steps + 1, 10 * calr.total_steps):
        assert calr.factor(architecture, beyond) == 0


@given(calrs(curve="polynomial"), unit, unit)
def test_the_polynomial_factor_is_that_of_the_paper(calr: CaLR, position: float, progress: float):
    architecture = between(calr, position)
    step = int(progress * calr.total_steps)
    expected = (1 - step / calr.total_steps) ** calr.gamma(architecture)
    assert calr.factor(architecture, step) == pytest.approx(expected, rel=1e-12)


@given(st.lists(sizes, min_size=2, max_size=40), st.floats(1, 16), st.floats(0.01, 1))
def test_gamma_by_rank_is_log_linear_in_the_rank(population: list[float], gamma_max, ratio):
    different = np.unique(population)
    assume(len(different) > 1)
    assume((np.diff(different) > 1e-8 * different[1:]).all())  # not equal but for rounding
    gamma_min = gamma_max * ratio
    calr = CaLR(
        lambda a: a["c"],
        total_steps=10,
        population=population,
        gamma_max=gamma_max,
        gamma_min=gamma_min,
    )
    assert (calr.c_min, calr.c_max) == (min(population), max(population))
    ranks = (rankdata(population) - 0.5) / len(population)
    gammas = [calr.gamma({"c": c}) for c in population]
    assert gammas == pytest.approx(gamma_max ** (1 - ranks) * gamma_min**ranks)
    assert np.mean(np.log(gammas)) == pytest.approx(np.log(gamma_max * gamma_min) / 2, abs=1e-9)
    assert calr.gamma({"c": min(population) / 2}) == calr.gamma({"c": min(population)})
    middle = sorted(population)[len(population) // 2] * 1.01
    between = calr.gamma({"c": middle})
    assert min(gammas) * (1 - 1e-12) <= between <= max(gammas) * (1 + 1e-12)


@pytest.mark.parametrize("reference", [{"bounds": (4, 4)}, {"population": [4, 4]}], ids=str)
def test_one_gamma_for_all_needs_no_complexities_that_differ(reference):
    calr = CaLR(lambda a: 4, total_steps=10, gamma_max=1.5, gamma_min=1.5, **reference)
    assert calr.gamma({}) == 1.5
    assert calr.factor({}, 5) == 0.5**1.5


def test_a_population_may_leave_the_extremes_out():
    calr = CaLR(lambda a: a["c"], total_steps=9, population=[2, 4, 4, 8])
    assert (calr.c_min, calr.c_max) == (2, 8)
    assert calr.covers(1)
    assert calr.gamma({"c": 4}) == pytest.approx(1)
    assert calr.gamma({"c": 1}) == calr.gamma({"c": 2}) == pytest.approx(4 ** (1 - 2 / 8))


@pytest.mark.parametrize("curve", [*CURVES, "scheduler"])
def test_calr_can_be_pickled(curve):
    calr = CaLR(len, total_steps=9, bounds=(1, 16), curve=curve)
    again = pickle.loads(pickle.dumps(calr))
    assert again.definition() == calr.definition()
    assert again.factor_of(2.0, 4, 0.5) == calr.factor_of(2.0, 4, 0.5)


def test_populations_are_told_apart_by_the_definition():
    def definition(population: list[float] | None) -> dict[str, Any]:
        reference = {"population": population} if population else {"bounds": (1, 9)}
        return CaLR(lambda a: 1, total_steps=9, **reference).definition()

    assert definition([1, 2, 9]) == definition([9, 1, 2]) != definition([1, 3, 9])
    assert definition([1, 2, 9]) != definition([1, 2, 2, 9])
    assert "population" not in definition(None)


@pytest.mark.parametrize("name", CURVES)
def test_curves_fall_from_1_to_0(name: str):
    values = [CURVES[name](progress) for progress in np.linspace(0, 1, 1001).tolist()]
    assert values[0] == pytest.approx(1, abs=1e-12)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert all(one > other for one, other in itertools.pairwise(values))


def test_the_cosine_curve_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert CURVES["cosine"](step / 50) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_a_curve_may_be_a_callable_and_is_clamped_at_0():
    calr = CaLR(lambda a: 4, total_steps=10, bounds=(1, 16), curve=lambda p: 1 - 2 * p)
    assert calr.factor({}, 2) == pytest.approx(0.6**2.125)
    assert calr.factor({}, 8) == 0
    ends = CaLR(lambda a: 4, total_steps=10, bounds=(1, 16), curve=lambda p: 1 - 0.9 * p)
    assert ends.factor({}, 10) == ends.factor({}, 11) == pytest.approx(0.1**2.125)


@given(calrs(total_steps=1000, warmup_steps=100), unit, st.integers(0, 999))
def test_warm_up_is_linear_and_not_bent_by_gamma(calr: CaLR, position: float, step: int):
    architecture = between(calr, position)
    factor = calr.factor(architecture, step)
    if step < 100:
        assert factor == (step + 1) / 100
    else:
        after = (step - 100) / 900
        expected = max(CURVES[calr.curve](after), 0) ** calr.gamma(architecture)
        assert factor == pytest.approx(expected)


@given(calrs(total_steps=1000, warmup_steps=100), unit, st.integers(0, 1100), st.floats(0.1, 9))
def test_the_start_multiplies_the_factor(calr: CaLR, position: float, step: int, start: float):
    started = CaLR(
        calr.complexity,
        total_steps=1000,
        bounds=(calr.c_min, calr.c_max),
        gamma_max=calr.gamma_max,
        gamma_min=calr.gamma_min,
        curve=calr.curve,
        warmup_steps=100,
        start=start,
    )
    architecture = between(calr, position)
    assert started.factor(architecture, step) == start * calr.factor(architecture, step)


@given(calrs(), unit, st.floats(1e-300, 1), st.floats(1e-6, 10))
def test_following_a_scheduler_gives_the_power_of_its_decay(
    calr: CaLR, position: float, decay: float, peak: float
):
    follows = CaLR(
        calr.complexity,
        bounds=(calr.c_min, calr.c_max),
        gamma_max=calr.gamma_max,
        gamma_min=calr.gamma_min,
        curve="scheduler",
    )
    gamma = follows.gamma(between(calr, position))
    lr = peak * decay * follows.factor(between(calr, position), 0, lr_ratio=decay)
    assert lr == pytest.approx(peak * decay**gamma, rel=1e-6, abs=1e-290)
    assert follows.factor(between(calr, position), 0, lr_ratio=0.0) == 0


def sequential(optimizer: torch.optim.Optimizer) -> Any:
    warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=10)
    decay = lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, decay], milestones=[10])


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.3], total_steps=61, pct_start=0.2)


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=61)


@pytest.mark.parametrize("schedule", [cosine, sequential, one_cycle])
@pytest.mark.parametrize("complexity", [1, 3, 16])
def test_the_curve_scheduler_with_schedulers_of_torch(schedule: Any, complexity: int):
    """lr = lr_0 · s^γ after the peak; as scheduled before it."""

    def optimizer_and_schedule() -> tuple[torch.optim.Optimizer, Any]:
        parameters = [nn.Parameter(torch.ones(1)) for _ in range(2)]
        groups = [{"params": p, "lr": lr} for p, lr in zip(parameters, (0.1, 0.3), strict=True)]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return optimizer, schedule(optimizer)

    plain, plain_scheduler = optimizer_and_schedule()
    scheduled = []
    for _ in range(60):
        scheduled.append([group["lr"] for group in plain.param_groups])
        plain.step()
        plain_scheduler.step()
    peak_at = max(range(60), key=lambda step: scheduled[step][0])

    optimizer, scheduler = optimizer_and_schedule()
    calr = CaLR(lambda a: complexity, bounds=(1, 16), curve="scheduler")
    dynamic = DynamicTraining(optimizer, architecture=lambda: {"layer1": "a"}, calr=calr)
    gamma = calr.gamma({})
    for step in range(60):
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        expected = scheduled[step]
        if step > peak_at:
            expected = [
                peak * (lr / peak) ** gamma
                for lr, peak in zip(scheduled[step], scheduled[peak_at], strict=True)
            ]
        assert dynamic.last.lr == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 0}, "total_steps must be a whole number, at least 1; got 0"),
        ({"total_steps": 2.5}, "got 2.5"),
        ({"total_steps": math.nan}, "got nan"),
        ({"total_steps": math.inf}, "got inf"),
        ({"total_steps": None}, "total_steps is needed"),
        ({"bounds": (16, 1)}, "which is reversed"),
        ({"bounds": (4, 4)}, "nothing for CaLR to tell apart"),
        ({"bounds": (0, 4)}, "must be positive finite"),
        ({"bounds": (1, math.nan)}, "must be positive finite"),
        ({"bounds": (1, math.inf)}, "must be positive finite"),
        ({"bounds": None}, "give a population"),
        ({"bounds": None, "population": [3, 3]}, "nothing for CaLR to tell apart"),
        ({"population": [1, 2]}, "not both"),
        ({"bounds": None, "population": []}, "at least one; got 0 different ones"),
        (
            {"bounds": None, "population": [1, 0]},
            "positive finite numbers, at least one; got 2 different",
        ),
        ({"bounds": None, "population": [1, math.nan]}, "positive finite numbers"),
        ({"gamma_max": 0}, "gamma_max must be a positive number"),
        ({"gamma_max": math.nan}, "gamma_max must be a positive number"),
        ({"gamma_max": 0.5}, "for a gamma_max below 1 give gamma_min yourself"),
        ({"gamma_min": 5}, "0 < gamma_min <= gamma_max"),
        ({"gamma_min": -1}, "0 < gamma_min <= gamma_max"),
        ({"curve": "cubic"}, "unknown curve 'cubic'; choose one of polynomial, cosine"),
        ({"curve": lambda p: math.nan}, "curve must be finite in [0, 1]; it is nan at 0"),
        ({"curve": lambda p: 1 if p < 1 else math.inf}, "it is inf at 1"),
        ({"warmup_steps": -1}, "0 <= warmup_steps < total_steps"),
        ({"warmup_steps": 10}, "0 <= warmup_steps < total_steps"),
        ({"warmup_steps": 3, "curve": "scheduler"}, "which warms up itself"),
        ({"start": 0}, "start must be a positive number"),
        ({"start": math.nan}, "start must be a positive number"),
        ({"start": 2, "curve": "scheduler"}, "and 1 with curve='scheduler'; got 2"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        CaLR(lambda a: 1, **{"total_steps": 10, "bounds": (1, 16)} | changes)
    assert message in str(error.value)


@pytest.mark.parametrize("complexity", [0, -1, math.nan, math.inf])
def test_a_complexity_that_is_none_is_refused(complexity: float):
    calr = CaLR(lambda a: complexity, total_steps=10, bounds=(1, 16))
    with pytest.raises(ValueError, match=r"positive finite number, got .* for architecture"):
        calr.gamma({"layer1": "a"})


def test_the_definition_is_plain_data_also_with_numpy_numbers(tmp_path: Any):
    calr = CaLR(
        lambda a: 1,
        total_steps=np.int64(10),
        bounds=(np.float64(1), np.int64(16)),
        gamma_max=np.float32(4),
        gamma_min=np.float64(0.5),
        warmup_steps=np.int64(2),
    )
    torch.save(calr.definition(), tmp_path / "definition.pt")
    assert torch.load(tmp_path / "definition.pt", weights_only=True) == calr.definition()
    assert pickle.loads(pickle.dumps(calr.definition()))["gamma"] == [0.5, 4.0]
