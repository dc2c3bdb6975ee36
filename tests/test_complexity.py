"""Counts against other counts, look-ups against what they stand for."""

from __future__ import annotations

import timeit
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas_dynamic import SandwichSampler, SearchSpace, UniformSampler
from nas_dynamic.complexity import (
    AdditiveTable,
    CachedComplexity,
    bounds,
    count_macs,
    count_parameters,
    lookup,
    measure_latency,
    population,
)

WIDTHS = {"layer1": (1, 3, 5), "layer2": (1, 3)}
SPACE = SearchSpace(WIDTHS)


class Supernet(nn.Module):
    """Two choices among kernel sizes; every path is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layers = nn.ModuleDict(
            {
                label: nn.ModuleList([nn.Conv2d(8, 8, k, padding=k // 2) for k in kernels])
                for label, kernels in WIDTHS.items()
            }
        )
        self.head = nn.Linear(8, 10)
        self.sampled = {"layer1": 1, "layer2": 1}

    def path(self) -> list[nn.Module]:
        return [
            self.layers[label][WIDTHS[label].index(kernel)]
            for label, kernel in self.sampled.items()
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.path():
            x = layer(x)
        return self.head(x.mean((2, 3)))

    def standalone_subnet(self) -> nn.Module:
        return nn.Sequential(
            self.stem, *self.path(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.head
        )


def macs_by_hand(architecture: dict[str, int], size: int, batch: int) -> float:
    pixels = (size // 2) ** 2
    convolutions = 3 * 8 * 9 + sum(8 * 8 * kernel**2 for kernel in architecture.values())
    return batch * (pixels * convolutions + 8 * 10)


@pytest.mark.parametrize("architecture", list(SPACE), ids=lambda a: "-".join(map(str, a.values())))
def test_a_supernet_counts_as_its_stand_alone_subnet(architecture: dict[str, int]):
    supernet = Supernet()
    supernet.sampled = architecture
    x = torch.randn(2, 3, 16, 16)
    standalone = supernet.standalone_subnet()
    assert count_parameters(supernet, x) == count_parameters(standalone)
    assert count_parameters(standalone, x) == count_parameters(standalone)
    assert count_macs(supernet, x) == count_macs(standalone, x) == macs_by_hand(architecture, 16, 2)
    assert count_parameters(supernet) > count_parameters(supernet, x)


def test_counting_changes_nothing_and_frozen_parameters_do_not_count():
    supernet = Supernet()
    x = torch.randn(1, 3, 8, 8)
    before = count_parameters(supernet, x)
    assert all(p.grad is None for p in supernet.parameters())
    count_macs(supernet, x)
    assert supernet.training
    supernet.stem.requires_grad_(False)
    assert before - count_parameters(supernet, x) == 3 * 8 * 9 + 8
    with torch.no_grad():
        assert count_parameters(supernet, x) < before


def test_counting_leaves_statistics_and_modes_and_takes_a_frozen_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(1, 3, 4, 4)
    assert count_parameters(model, x) == 3 * 4 + 4 + 2 * 8
    count_macs(model, x)
    measure_latency(model, x, seconds=0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert count_parameters(model.requires_grad_(False), x) == count_parameters(model) == 0


def test_macs_are_counted_on_the_meta_device():
    x = torch.randn(1, 3, 32, 32)
    expected = count_macs(Supernet(), x)
    with torch.device("meta"):
        assert count_macs(Supernet(), torch.empty(1, 3, 32, 32)) == expected


def test_latency_grows_with_the_work():
    small, large = nn.Linear(8, 8), nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)])
    times = [
        measure_latency(small, torch.randn(1, 8), seconds=0.02),
        measure_latency(large, torch.randn(64, 512), seconds=0.02),
    ]
    assert 0 < times[0] < times[1] < 1000
    assert small.training


def parameters_of(architecture: dict[str, int]) -> float:
    supernet = Supernet()
    supernet.sampled = architecture
    return count_parameters(supernet.standalone_subnet())


def test_an_additive_space_gets_an_exact_table():
    table = lookup(SPACE, parameters_of)
    assert isinstance(table, AdditiveTable)
    assert [table(a) for a in SPACE] == [parameters_of(a) for a in SPACE]
    assert not table.errors(SPACE, parameters_of).any()


def test_a_space_that_is_not_additive_gets_a_cache():
    calls = []

    def product(architecture):
        calls.append(architecture)
        return float(np.prod([*architecture.values()]))

    cache = lookup(SPACE, product)
    assert isinstance(cache, CachedComplexity)
    assert [cache(a) for a in SPACE] == [product(a) for a in SPACE]
    calls.clear()
    assert [cache(a | {"irrelevant": 0}) for a in SPACE] == [product(a) for a in SPACE]
    assert len(calls) == SPACE.size, "the cache has computed nothing again"


def test_what_choices_share_counts_once(tmp_path):
    terms = {"layer1": {"a": 1.0, "b": 2.0}, "layer2": {"a": 4.0, "b": 8.0}}
    tied = [(16.0, [("layer1", "b"), ("layer2", "b")]), (32.0, [("layer1", "a"), ("layer2", "b")])]
    table = AdditiveTable(0.0, terms, tied)
    expected = {"aa": 5 + 32, "ab": 9 + 16 + 32, "ba": 6 + 16, "bb": 10 + 16 + 32}
    table.save(tmp_path / "table.json")
    for known in (table, AdditiveTable.load(tmp_path / "table.json")):
        found = {one + two: known({"layer1": one, "layer2": two}) for one, two in expected}
        assert found == expected
    space = SearchSpace({label: list(term) for label, term in terms.items()})
    assert isinstance(lookup(space, table), CachedComplexity), "no table of terms alone is exact"


@st.composite
def terms(draw):
    candidates = st.one_of(st.integers(), st.text(max_size=3), st.tuples(st.integers(), st.text()))
    values = st.dictionaries(candidates, st.floats(0, 1e6), min_size=1, max_size=4)
    return draw(st.floats(1, 1e6)), draw(st.dictionaries(st.text(), values, min_size=1, max_size=3))


@given(terms())
def test_a_table_is_measured_from_neighbours_and_survives_json(tmp_path_factory, constant_terms):
    constant, values = constant_terms
    table = AdditiveTable(constant, values)
    space = SearchSpace({label: list(term) for label, term in values.items()})
    measured = AdditiveTable.measure(space, table)
    path = tmp_path_factory.mktemp("table") / "table.json"
    table.save(path)
    loaded = AdditiveTable.load(path)
    for architecture in space:
        assert loaded(architecture) == table(architecture)
        assert measured(architecture) == pytest.approx(table(architecture), rel=1e-9)
    found = bounds(space, table)
    all_values = [table(architecture) for architecture in space]
    assert found == pytest.approx((min(all_values), max(all_values)), rel=1e-12)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"constant": 1}', '{"constant": 1, "terms": {"a": [[1]]}}']
)
def test_a_file_that_is_no_table_is_named(content: str, tmp_path):
    path = tmp_path / "latency.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"latency.json is no complexity table"):
        AdditiveTable.load(path)


def test_a_look_up_names_what_it_misses():
    table = AdditiveTable(1.0, {"layer1": {"a": 2.0}})
    with pytest.raises(ValueError, match=r"no entry for 'b' of .* made for the labels layer1"):
        table({"layer1": "b"})
    with pytest.raises(ValueError, match="no entry for 'layer1'"):
        table({"layer2": "a"})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bounds_that_are_none_are_refused(value: float):
    for measured in (bounds, lookup):
        with pytest.raises(ValueError, match="complexity must be a positive finite number, got"):
            measured(SPACE, lambda a: value)


def test_a_look_up_takes_microseconds():
    space = SearchSpace({f"layer{i}": range(7) for i in range(21)})
    architecture = space.sample(np.random.default_rng(0))
    table = lookup(space, lambda a: 1.0 + sum(a.values()))
    cache = CachedComplexity(space, table)
    for look_up in (table, cache):
        assert look_up(architecture) == 1 + sum(architecture.values())
        timer = timeit.Timer(partial(look_up, architecture))
        seconds = min(timer.repeat(number=1000, repeat=5)) / 1000
        assert seconds < 100e-6, "2 to 4 µs were measured: only a change of order fails"


def test_a_population_is_the_whole_of_a_small_space_and_a_sample_of_a_large_one():
    small = SearchSpace({"a": [1, 2, 3], "b": [1, 2]})
    product = lambda a: float(np.prod([*a.values()]))  # noqa: E731
    assert sorted(population(small, product)) == [1, 2, 2, 3, 4, 6]
    large = SearchSpace({f"layer{i}": [1, 2] for i in range(20)})
    total = lambda a: float(sum(a.values()))  # noqa: E731
    found = population(large, total, samples=400, seed=1)
    assert len(found) == 400
    assert found == population(large, total, samples=400, seed=1)
    assert found != population(large, total, samples=400)
    assert np.mean(found) == pytest.approx(30, abs=4 * 20**0.5 / 2 / 20)


def test_a_population_is_drawn_as_the_training_draws_and_leaves_its_sampler_as_it_was():
    space = SearchSpace({"a": [1, 2, 3], "b": [1, 2]})
    product = lambda a: float(np.prod([*a.values()]))  # noqa: E731
    sampler, twin = (
        UniformSampler(space, seed=3, accept=lambda a: a["a"] != a["b"]) for _ in range(2)
    )
    found = population(space, product, sampler=sampler)
    assert [found.count(value) for value in (1, 4)] == [0, 0]
    counts = np.array([found.count(value) for value in (2, 3, 6)])
    assert counts.sum() == 1000
    assert np.abs(counts - [500, 250, 250]).max() < 5 * 1000**0.5 / 2  # 1·2 and 2·1 are both 2
    assert [sampler.sample() for _ in range(20)] == [twin.sample() for _ in range(20)]
    ends = population(space, product, sampler=SandwichSampler(space, product, randoms=0))
    assert (ends.count(6), ends.count(1)) == (500, 500)
    other = UniformSampler(SearchSpace({"a": [4], "b": [1]}))
    with pytest.raises(ValueError, match="4"):
        population(space, product, sampler=other)
