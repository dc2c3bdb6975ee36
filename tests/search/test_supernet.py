"""One call searches supernets of plain PyTorch, of timm and of NNI."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nas_dynamic import SearchSpace
from nas_dynamic.evaluation import evaluate, recalibrate, score_subnets
from nas_dynamic.search import Objective, RandomSearch, search_supernet
from nas_dynamic.search.supernet import DIVERGED
from nas_dynamic.storage.journal import RunError


class Plain(nn.Module):
    """A convolution of a chosen size, twice."""

    space = SearchSpace({"first": [1, 3, 5], "second": [1, 3, 5]})

    def __init__(self) -> None:
        super().__init__()
        self.sampled = None
        for label, channels in (("first", 3), ("second", 4)):
            layers = {str(k): nn.Conv2d(channels, 4, k, padding=k // 2) for k in (1, 3, 5)}
            self.add_module(label, nn.ModuleDict(layers))
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(4, 10)

    def activate(self, architecture):
        self.active = {label: str(kernel) for label, kernel in architecture.items()}

    def subnet_parameters(self):
        channels = {"first": 3, "second": 4}
        return lambda a: 58 + sum(4 * channels[n] * k * k + 4 for n, k in a.items())

    def extract(self, architecture):
        first, second = (self.get_submodule(f"{n}.{k}") for n, k in architecture.items())
        layers = [first, self.bn, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.head]
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.bn(self.get_submodule(f"first.{self.active['first']}")(x))
        x = self.get_submodule(f"second.{self.active['second']}")(x)
        return self.head(x.mean((2, 3)))


def timm_supernet():
    pytest.importorskip("timm")
    from tests.timm.choices.supernets import BUILDERS

    return BUILDERS["MBConv"]()


def nni_supernet():
    pytest.importorskip("nni")
    from nni.nas.hub.pytorch import NasBench201
    from nni.nas.strategy import RandomOneShot

    from nas_dynamic.adapters.nni import Supernet

    return Supernet(RandomOneShot().mutate_model(NasBench201(4, 1, 10)))


@pytest.fixture
def batches():
    return [(torch.rand(16, 3, 16, 16), torch.randint(10, (16,))) for _ in range(2)]


@pytest.mark.parametrize(
    "build",
    [
        Plain,
        pytest.param(timm_supernet, marks=pytest.mark.host),
        pytest.param(nni_supernet, marks=pytest.mark.host),
    ],
)
def test_the_best_subnet_is_the_network_that_was_scored(build, batches):
    supernet = build()
    sizes = supernet.subnet_parameters()
    greatest = sizes(supernet.space.largest(sizes)) - 1
    found = search_supernet(
        supernet, batches, calibration=batches, budget=9, at_most={"parameters": greatest}
    )
    losses = [e.values["loss"] for e in found.evaluations]
    assert found.best.values["loss"] == min(losses) < max(losses)
    assert max(e.values["parameters"] for e in found.evaluations) <= greatest
    network = supernet.extract(found.best.architecture)
    assert found.best.values["parameters"] == sum(p.numel() for p in network.parameters())
    recalibrate(network, batches)
    accuracy, loss = evaluate(network, batches)
    assert found.best.values["accuracy"] == accuracy
    assert found.best.values["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_whole_space_is_ranked_as_by_scoring_it(batches):
    supernet = Plain()
    found = search_supernet(supernet, batches, calibration=batches, budget=9)
    scored = score_subnets(supernet, Plain.activate, supernet.space, batches, calibration=batches)
    assert min(scored, key=lambda s: s.loss).architecture == found.best.architecture


def test_a_search_goes_on_from_its_file_and_not_from_that_of_other_weights(batches, tmp_path):
    supernet, scored = Plain(), []
    supernet.register_forward_hook(lambda *_: scored.append(1))
    options = {"calibration": batches, "strategy": RandomSearch(), "path": tmp_path / "search"}
    search_supernet(supernet, batches, budget=4, **options)
    of_four = len(scored)
    found = search_supernet(supernet, batches, budget=9, **options)
    assert len(found.evaluations) == 9
    assert len(scored) == of_four * 9 / 4
    with pytest.raises(RunError, match="another search: images was"):
        search_supernet(supernet, batches[:1], budget=9, **options)
    nn.init.zeros_(supernet.head.weight)
    with pytest.raises(RunError, match="another search: supernet was"):
        search_supernet(supernet, batches, budget=9, **options)


def test_a_subnet_that_diverged_is_the_worst(batches):
    supernet = Plain()
    nn.init.constant_(supernet.get_submodule("first.5").weight, torch.nan)
    objectives = [Objective("loss"), Objective("parameters")]
    found = search_supernet(supernet, batches, calibration=batches, budget=9, objectives=objectives)
    diverged = [e for e in found.evaluations if e.architecture["first"] == 5]
    assert [e.values["loss"] for e in diverged] == [DIVERGED] * 3
    assert all(e.architecture["first"] != 5 for e in found.pareto)


def test_what_is_no_supernet_is_told_what_it_lacks(batches):
    with pytest.raises(ValueError, match=r"Linear is no supernet .* it needs space, activate"):
        search_supernet(nn.Linear(2, 2), batches, budget=1)
