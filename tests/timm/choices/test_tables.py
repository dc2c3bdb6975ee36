"""Tables of parameters, MACs and milliseconds by layers."""

from __future__ import annotations

import copy
import functools
import timeit

import numpy as np
import pytest
import timm
import torch
from torch import nn

from nas_dynamic.adapters.timm import build, fuse
from nas_dynamic.complexity import count_macs, count_parameters, measure_latency
from tests.timm.choices.supernets import SIZE, built
from tests.timm.loop import random_subnets

pytestmark = pytest.mark.host


def test_tables_equal_direct_counts(name, supernet):
    size = SIZE.get(name, 48)
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs(size)
    image = torch.zeros(1, 3, size, size, device="meta")
    for architecture in random_subnets(supernet, 20, seed=1):
        model = supernet.extract(architecture)
        assert parameters(architecture) == count_parameters(model)
        assert macs(architecture) == count_macs(model.to("meta"), image)


def coat(mlp_ratio):
    """CoaT, whose blocks of a stage share their position encodings."""
    widths = {"embed_dims": (8, 8, 16, 16), "mlp_ratios": (mlp_ratio,) * 4}
    return {"model_name": "coat_lite_tiny", "img_size": 64, **widths}


@functools.cache
def tied():
    torch.manual_seed(0)
    return fuse({"narrow": coat(2), "wide": coat(4)}, num_classes=5).eval()


def test_tied_weights_count_once(tmp_path):
    supernet = copy.deepcopy(tied())
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs(64)
    parameters.save(tmp_path / "parameters.json")
    loaded = type(parameters).load(tmp_path / "parameters.json")
    x = torch.randn(1, 3, 64, 64)
    all_wide = dict.fromkeys(supernet.space.labels, "wide")
    for architecture in [supernet.base, all_wide, *random_subnets(supernet, 10)]:
        model = supernet.extract(architecture)
        rebuilt = build(supernet.describe(architecture))
        assert count_parameters(model) == count_parameters(rebuilt)
        assert parameters(architecture) == count_parameters(rebuilt)
        assert loaded(architecture) == parameters(architecture)
        supernet.activate(architecture)
        with torch.no_grad():
            assert torch.equal(model(x), supernet(x))
        assert macs(architecture) == count_macs(model.to("meta"), x.to("meta"))
    plain = timm.create_model(**coat(4), num_classes=5)
    # The parts outside of the blocks keep the encodings of the model that has them.
    encodings = [getattr(plain, f"{kind}{i}") for kind in ("cpe", "crpe") for i in range(1, 5)]
    extra = sum(count_parameters(encoding) for encoding in encodings)
    assert parameters(all_wide) == count_parameters(plain) + extra


class Tied(nn.Module):
    """A model whose layers have one weight, as a parameter of two modules."""

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.Sequential(*(Mixing(width) for _ in range(3)))
        for block in self.blocks[1:]:
            block.inner.weight = self.blocks[0].inner.weight

    def forward(self, x):
        return self.blocks(x).mean((2, 3))


class Mixing(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.expand, self.project = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
        self.inner = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.project(self.inner(self.expand(x)))


def test_tied_weights_stay_tied_in_an_extracted_subnet():
    torch.manual_seed(0)
    supernet = fuse({"narrow": Tied(2), "wide": Tied(8)}, layers=r"blocks\.\d").eval()
    parameters, sizes = supernet.subnet_parameters(), {"narrow": 2, "wide": 8}
    for architecture in supernet.space:
        model = supernet.extract(architecture)
        widths = [sizes[candidate] for candidate in architecture.values()]
        expected = sum(8 * w + 3 for w in widths) + sum(w**2 for w in {*widths})
        assert count_parameters(model) == parameters(architecture) == expected
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())
        weights = {id(block.inner.weight) for block in model.blocks}
        assert len(weights) == len({*widths})
        assert weights.isdisjoint(map(id, supernet.parameters()))


class Recurrent(nn.Module):
    """A model that runs its layers several times, with an argument beside the images."""

    def __init__(self, kernel, turns=2):
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=kernel, padding=kernel // 2)
        self.blocks = nn.Sequential(Scaled(conv(3, 3)), Scaled(conv(3, 3)))
        self.turns = turns

    def forward(self, x):
        for _ in range(self.turns):
            for block in self.blocks:
                x = block(x, scale=0.5)
            x = nn.functional.max_pool2d(x, 2)
        return x.mean((2, 3))


class Scaled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, *, scale):
        return self.layer(x) * scale


def test_layers_that_run_more_than_once_count_as_often():
    models = {"k3": Recurrent(3), "k5": Recurrent(5)}
    supernet = fuse(models, layers=r"blocks\.\d").eval()
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs(32)
    image = torch.zeros(1, 3, 32, 32, device="meta")
    for architecture in supernet.space:
        model = supernet.extract(architecture)
        assert parameters(architecture) == count_parameters(model)
        assert macs(architecture) == count_macs(model.to("meta"), image)
    # At 32×32 and at 16×16.
    uniform = dict.fromkeys(supernet.space.labels, "k3")
    assert macs(uniform) == 2 * 3 * 3 * 3 * 3 * (32 * 32 + 16 * 16)


def test_models_of_another_size_of_image():
    supernet = fuse("test_vit", skip=True, img_size=64)
    assert supernet.subnet_macs()(supernet.base) == supernet.subnet_macs(64)(supernet.base)


def test_latency_table_is_saved_and_reports_its_error(tmp_path):
    supernet = copy.deepcopy(built("MBConv"))
    x = torch.randn(1, 3, 32, 32)
    table = supernet.subnet_latency(x, seconds=0.002)
    assert set(table.terms) == set(supernet.space.labels)
    assert all(term >= 0 for terms in table.terms.values() for term in terms.values())
    table.save(tmp_path / "latency.json")
    loaded = type(table).load(tmp_path / "latency.json")
    architectures = random_subnets(supernet, 4)
    assert [loaded(a) for a in architectures] == [table(a) for a in architectures]

    def measured(architecture):
        return measure_latency(supernet.extract(architecture), x, seconds=0.002)

    # How large the error is, and of which sign, depends on what else the machine does.
    errors = loaded.errors(supernet.space, measured, samples=4)
    assert errors.shape == (4,)
    assert np.isfinite(errors).all()


def test_lookup_takes_microseconds():
    supernet = built("MobileNetV3-SE")
    table, (architecture,) = supernet.subnet_parameters(), random_subnets(supernet, 1)
    seconds = min(timeit.repeat(lambda: table(architecture), number=1000, repeat=5)) / 1000
    assert seconds < 100e-6, "2 to 4 µs were measured: only a change of order fails"
