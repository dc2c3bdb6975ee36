"""Tables of parameters, MACs and milliseconds by blocks."""

from __future__ import annotations

import timeit

import numpy as np
import pytest
import torch

from nas_dynamic.adapters.timm import BlockTable, elastic_vit
from nas_dynamic.complexity import bounds, count_macs, count_parameters, measure_latency
from tests.timm.loop import random_subnets
from tests.timm.vit.models import SIZES, SPACES, images, tiny

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("choices", "count"),
    [
        *((choices, 20) for choices in SPACES.values()),
        ({"embed_dim": [24, 48]}, 2),
        ({"attention": ["linear", "softmax"], "per_layer": False}, 2),
        ({"mlp_ratio": [1, 4]}, 4),
    ],
)
def test_tables_equal_direct_counts(choices, count):
    supernet = elastic_vit(tiny(), **choices)
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs()
    image = torch.zeros(1, 3, 16, 16, device="meta")
    for architecture in random_subnets(supernet, count):
        subnet = supernet.extract(architecture)
        assert parameters(architecture) == count_parameters(subnet)
        assert macs(architecture) == count_macs(subnet.to("meta"), image)
    least, greatest = bounds(supernet.space, parameters)
    assert greatest == count_parameters(supernet)
    assert least <= min(map(parameters, random_subnets(supernet, 200, seed=1)))


def test_macs_for_another_image_size():
    model = tiny(dynamic_img_size=True)
    supernet = elastic_vit(model, embed_dim=[24, 48], attention=["softmax", "linear"])
    (architecture,) = random_subnets(supernet, 1)
    subnet, x = supernet.extract(architecture), images(batch=1, size=24)
    supernet.activate(architecture)
    assert torch.equal(supernet(x), subnet(x))
    assert supernet.subnet_macs(24)(architecture) == supernet.subnet_macs((24, 24))(architecture)
    assert supernet.subnet_macs((24, 24))(architecture) == count_macs(
        subnet.to("meta"), x.to("meta")
    )


def test_linear_attention_costs_less_for_many_tokens():
    supernet = elastic_vit(tiny(img_size=64), attention=["softmax", "linear"], per_layer=False)
    macs = supernet.subnet_macs()
    tokens, head_dim = 64 // 4 * 64 // 4 + 1, 12
    layers_heads = 3 * 4
    softmax = layers_heads * 2 * tokens**2 * head_dim
    linear = layers_heads * tokens * (2 * head_dim**2 + head_dim)
    assert macs({"attention": "softmax"}) - macs({"attention": "linear"}) == softmax - linear


def test_latency_by_a_table():
    supernet = elastic_vit(tiny(), depth=[1, 3], per_layer=False)
    x = images(batch=8)
    for _ in range(5):  # on a busy machine a measurement may be far off
        latency = supernet.subnet_latency(x, seconds=0.05)
        if latency({"depth": 3}) > latency({"depth": 1}) > 0:
            break
    else:
        pytest.fail("three blocks never took longer than one")

    def measured(architecture):
        return measure_latency(supernet.extract(architecture), x, seconds=0.01)

    # How large the error is, and of which sign, depends on what else the machine does.
    errors = latency.errors(supernet.space, measured, samples=4)
    assert errors.shape == (4,)
    assert np.isfinite(errors).all()


def test_latency_in_half_precision():
    supernet = elastic_vit(tiny(), depth=[1, 3], per_layer=False).bfloat16()
    latency = supernet.subnet_latency(images().bfloat16(), seconds=0.01)
    assert latency({"depth": 1}) > 0


@pytest.mark.parametrize("choices", [*SPACES.values(), {"depth": [1, 3]}, {"embed_dim": [24, 48]}])
def test_saved_tables_are_the_same(choices, tmp_path):
    supernet = elastic_vit(tiny(), **choices)
    table = supernet.subnet_parameters()
    table.save(tmp_path / "table.json")
    loaded = type(table).load(tmp_path / "table.json")
    assert repr(loaded) == repr(table)
    assert not loaded.errors(supernet.space, table).any()
    architecture = supernet.architecture
    label = next(iter(architecture))
    with pytest.raises(ValueError, match=f"99 is not a candidate of '{label}'"):
        loaded(architecture | {label: 99})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"choices": 3}'])
def test_other_files_are_no_tables(content, tmp_path):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(ValueError, match=r"table\.json is no table that BlockTable\.save wrote"):
        BlockTable.load(tmp_path / "table.json")


def test_look_up_takes_microseconds_and_refuses_strangers():
    supernet = elastic_vit(tiny(depth=16), **SIZES | {"depth": [8, 16]})
    parameters = supernet.subnet_parameters()
    architecture = supernet.architecture
    seconds = min(timeit.repeat(lambda: parameters(architecture), number=2000, repeat=5)) / 2000
    assert seconds < 100e-6, "2 to 4 µs were measured: only a change of order fails"
    with pytest.raises(ValueError, match="7 is not a candidate of 'heads3'"):
        parameters(architecture | {"heads3": 7})
