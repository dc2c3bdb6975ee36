from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nni.mutable import Numerical
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import Proxyless, RandomOneShot

from nas_dynamic.adapters.nni import activate, search_space, subnet_macs, subnet_parameters
from nas_dynamic.adapters.nni.space import architecture_of, sample_of
from nas_dynamic.complexity import bounds, count_macs, count_parameters

pytestmark = pytest.mark.host


def supernet_of(model_space):
    return RandomOneShot().mutate_model(copy.deepcopy(model_space))


def test_parameters_and_macs_equal_those_of_the_frozen_subnet(hub):
    build, shape = hub
    model_space = build()
    supernet = supernet_of(model_space)
    space = search_space(supernet)
    parameters = subnet_parameters(supernet)
    macs = subnet_macs(supernet, torch.zeros(2, *shape))
    generator = np.random.default_rng(0)
    for i in range(12):
        architecture = space.sample(generator)
        subnet = model_space.freeze(sample_of(architecture, model_space))
        assert parameters(architecture) == count_parameters(subnet)
        if i < 3:
            example = torch.zeros(1, *shape, device="meta")
            assert macs(architecture) == count_macs(copy.deepcopy(subnet).to("meta"), example)


@pytest.mark.parametrize("hub", ["NasBench201", "ProxylessNAS"], indirect=True)
def test_parameters_of_a_proxyless_supernet(hub):
    model_space = hub[0]()
    supernet = Proxyless().mutate_model(copy.deepcopy(model_space))
    parameters = subnet_parameters(supernet)
    generator = np.random.default_rng(0)
    for _ in range(6):
        architecture = search_space(model_space).sample(generator)
        # Proxyless turns a depth into a choice for each block: here or not.
        blocks = {
            label: "1" if int(label[-1]) < architecture[label.split("/")[0]] else "0"
            for label in search_space(supernet).labels
            if "/in_repeat_" in label
        }
        subnet = model_space.freeze(sample_of(architecture, model_space))
        assert parameters(architecture | blocks) == count_parameters(subnet)


def test_bounds_enclose_random_subnets(hub):
    supernet = supernet_of(hub[0]())
    space = search_space(supernet)
    parameters = subnet_parameters(supernet)
    least, greatest = bounds(space, parameters)
    generator = np.random.default_rng(1)
    drawn = [parameters(space.sample(generator)) for _ in range(500)]
    assert least <= min(drawn)
    assert max(drawn) <= greatest


def test_activation_decides_what_the_supernet_computes(hub):
    build, shape = hub
    supernet = supernet_of(build())
    space = search_space(supernet)
    x = torch.randn(4, *shape)

    def output(architecture):
        torch.manual_seed(0)  # dropout
        activate(supernet, architecture)
        with torch.no_grad():
            return supernet(x)

    one, other = (space.sample(np.random.default_rng(seed)) for seed in (0, 1))
    first = output(one)
    assert not torch.equal(first, output(other))
    assert torch.equal(first, output(one))


def test_sample_round_trip(hub):
    model_space = hub[0]()
    space = search_space(model_space)
    architecture = space.sample(np.random.default_rng(3))
    assert architecture_of(sample_of(architecture, model_space), model_space) == architecture
    space.validate(architecture)


def test_continuous_choice_is_refused():
    class Continuous(ModelSpace):
        def __init__(self):
            super().__init__()
            self.add_mutable(Numerical(0, 1, label="dropout"))

    with pytest.raises(TypeError, match="'dropout' is a Numerical"):
        search_space(Continuous())
