"""Tables of parameters, MACs and milliseconds by layers."""

from __future__ import annotations

import copy
import timeit

import numpy as np
import pytest
import torch

from nas_dynamic.adapters.timm import fuse
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

    # How large the error is depends on what else the machine does.
    errors = loaded.errors(supernet.space, measured, samples=4)
    assert errors.shape == (4,)
    assert np.isfinite(errors).all()
    assert (errors > -1).all()


def test_lookup_takes_microseconds():
    supernet = built("MobileNetV3-SE")
    table, (architecture,) = supernet.subnet_parameters(), random_subnets(supernet, 1)
    seconds = min(timeit.repeat(lambda: table(architecture), number=1000, repeat=5)) / 1000
    assert seconds < 10e-6
