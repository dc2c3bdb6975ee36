from __future__ import annotations

import copy
import itertools
import threading

import numpy as np
import pytest
import torch
from torch import nn

from nas_dynamic.evaluation import prefix_cache, score_subnets
from nas_dynamic.space import SearchSpace

SPACE = SearchSpace({f"{i}": ["a", "b", "c"] for i in range(4)})
LAYERS = {"stem": (), **{f"layers.{i}": (f"{i}",) for i in range(4)}}


class Choice(nn.ModuleDict):
    active = "a"
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self[self.active](x)


class Supernet(nn.Module):
    """Layers that work in place on their input, residual additions in place, BN of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            Choice(
                {
                    name: nn.Sequential(
                        nn.ReLU(inplace=True), nn.Conv2d(4, 4, k, padding=k // 2), nn.BatchNorm2d(4)
                    )
                    for name, k in zip("abc", (1, 3, 5), strict=True)
                }
            )
            for _ in range(4)
        )
        self.head = nn.Linear(4, 3)

    def activate(self, architecture) -> None:
        for i, layer in enumerate(self.layers):
            layer.active = architecture[str(i)]

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            y = layer(x.clone())
            y += x
            x = y
        return self.head(x.mean((2, 3)))


def batches(seed: int, count: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet()


def scored(supernet, architectures, **options):
    options = {"calibration": batches(1, 2)} | options
    scores = score_subnets(supernet, Supernet.activate, architectures, batches(0), **options)
    return {tuple(s.architecture.values()): (s.accuracy, s.loss) for s in scores}


def sample(count: int):
    generator = np.random.default_rng(0)
    return [SPACE.sample(generator) for _ in range(count)]


@pytest.mark.parametrize("batch_norm", ["recalibrate", "batch", "running"])
def test_shared_scores_are_the_plain_ones(supernet, batch_norm):
    before = copy.deepcopy(supernet.state_dict())
    plain = scored(supernet, sample(30), batch_norm=batch_norm)
    shared = scored(supernet, sample(30), batch_norm=batch_norm, layers=LAYERS)
    assert shared == plain
    assert len({loss for _, loss in plain.values()}) == len(plain) > 20
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert not any("forward" in vars(module) for module in supernet.modules())


def test_images_of_one_pixel_are_told_apart(supernet):
    """`Tensor.to` copies them at every call, even to the memory format that they have."""
    images = [(torch.randn(8, 3, 1, 1) * 9, labels) for _, labels in batches(0)]
    images = [(x[:, :1].clone(), labels) for x, labels in images]
    supernet.stem = nn.Conv2d(1, 4, 1)
    found = []
    for layers in (None, LAYERS):
        scores = score_subnets(
            supernet, Supernet.activate, sample(20), images, calibration=images, layers=layers
        )
        found.append({tuple(s.architecture.values()): (s.accuracy, s.loss) for s in scores})
    assert found[0] == found[1]


def test_each_beginning_is_computed_once(supernet):
    architectures = sample(40)
    scored(supernet, architectures, layers=LAYERS)
    for i, layer in enumerate(supernet.layers):
        beginnings = {tuple(itertools.islice(a.values(), i + 1)) for a in architectures}
        assert layer.calls == 5 * len(beginnings)


def test_what_does_not_fit_is_computed_again(supernet, monkeypatch):
    plain, without = scored(supernet, sample(20)), supernet.layers[0].calls
    batch = 8 * 4 * 6 * 6 * 4  # bytes of the output of a layer; 2 to recalibrate on, 3 to score
    calls = []
    for batches_that_fit in (1, 3, 5, 7, 10, 50):
        monkeypatch.setattr(prefix_cache, "MEMORY", batches_that_fit * batch)
        supernet.layers[0].calls = 0
        assert scored(supernet, sample(20), layers=LAYERS) == plain
        calls.append(supernet.layers[0].calls)
    # The stem comes first. At last each of 3 candidates is computed once for all 5 batches.
    assert calls[:2] == [without] * 2
    assert without > calls[2] > calls[4] > calls[5] == 3 * 5


def test_copies_in_threads_score_the_same(supernet):
    plain = scored(supernet, sample(21))
    assert scored(supernet, sample(21), devices=["cpu", "cpu"], layers=LAYERS) == plain
    assert scored(supernet, sample(2), devices=["cpu"] * 3) == scored(supernet, sample(2))


def test_an_error_in_a_thread_reaches_the_reader_once(supernet):
    broken = [*batches(1), (torch.zeros(4, 5, 6, 6), torch.zeros(4))]
    options = {"devices": ["cpu", "cpu"], "calibration": broken}
    scores = score_subnets(supernet, Supernet.activate, sample(4), batches(0), **options)
    with pytest.raises(RuntimeError, match="channels"):
        next(scores)
    assert list(scores) == []


def test_a_slow_copy_holds_up_no_other(supernet):
    architectures, release = sample(12), threading.Event()

    def activate(model, architecture):
        if any(architecture is slow for slow in architectures[6:]):
            assert release.wait(60)
        model.activate(architecture)

    options = {"devices": ["cpu", "cpu"], "batch_norm": "running"}
    scores = score_subnets(supernet, activate, architectures, batches(0), **options)
    assert [next(scores).architecture for _ in range(6)] == architectures[:6]
    release.set()
    assert [score.architecture for score in scores] == architectures[6:]


def test_a_reader_may_stop_early(supernet):
    activated, threads = [], threading.active_count()

    def activate(model, architecture):
        activated.append(architecture)
        model.activate(architecture)

    options = {"calibration": batches(1), "devices": ["cpu"] * 2}
    scores = score_subnets(supernet, activate, sample(50), batches(0), **options)
    next(scores)
    scores.close()
    assert threading.active_count() == threads
    assert len(activated) <= 4  # each thread's first, and the one that it is at


def test_unknown_layers_are_refused(supernet):
    with pytest.raises(ValueError, match="no module 'layer0'"):
        scored(supernet, sample(2), layers={"layer0": ("0",)})


def timm_supernets():
    from nas_dynamic.adapters.timm import elastic_vit, fuse, mobile_supernet

    yield mobile_supernet(
        [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e3_c8"], ["ir_r2_k3_s2_e3_c12"]],
        kernel=(3, 5),
        expansion=(2, 3),
        skip=True,
        num_classes=4,
        num_features=16,
    )
    yield fuse({"plain": "resnet18", "se": "seresnet18"}, skip=True, num_classes=4)
    yield elastic_vit(
        "vit_tiny_patch16_224",
        img_size=32,
        num_classes=4,
        depth=(10, 12),
        embed_dim=(128, 192),
        mlp_ratio=(2, 4),
        per_layer=True,
    )


@pytest.mark.parametrize("number", range(3), ids=["mobile", "resnet", "vit"])
def test_timm_supernets_know_their_layers(number):
    torch.manual_seed(number)
    supernet = next(itertools.islice(timm_supernets(), number, None))
    generator = np.random.default_rng(number)
    # Two that differ in the last layer alone are among them.
    architectures = [supernet.space.sample(generator) for _ in range(4)]
    last = supernet.space.labels[-1]
    for candidate in supernet.space.choices[last]:
        architectures.append({**architectures[0], last: candidate})
    images = torch.randn(6, 3, 32, 32)
    calls = []
    deepest = dict(supernet.named_modules())[[*supernet.layer_labels][3]]
    for module in deepest.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for layers in (None, supernet.layer_labels):
        calls.clear()
        options = {"calibration": [(images, torch.zeros(6))], "layers": layers}
        scores = score_subnets(
            supernet,
            type(supernet).activate,
            architectures,
            [(images, torch.arange(6) % 4)],
            **options,
        )
        found.append({tuple(s.architecture.values()): (s.accuracy, s.loss) for s in scores})
        found.append(len(calls))
    assert found[0] == found[2]
    assert len(set(found[0].values())) > 3
    assert found[3] < found[1]
