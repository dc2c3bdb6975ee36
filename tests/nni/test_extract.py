"""Subnets as models of their own: equal to the supernet with that subnet active, nothing shared."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from nni.nas.hub.pytorch import DARTS, ENAS, PNAS, AmoebaNet, NasBench101, NASNet
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingLayer
from nni.nas.strategy import DARTS as DifferentiableNAS
from nni.nas.strategy import ENAS as EnasStrategy
from nni.nas.strategy import Proxyless, RandomOneShot
from torch import nn

from nas_dynamic.adapters.nni import (
    FewShotOneShot,
    SupernetEvaluator,
    activate,
    extract,
    search_space,
    subnet_parameters,
)
from nas_dynamic.adapters.nni.space import sample_of
from tests.nni.conftest import HUB

pytestmark = pytest.mark.host

# Loose ends, and depths at which a stage has a single cell, are where NNI freezes another model.
NDS = {
    space.__name__: (functools.partial(space, width=4, num_cells=(3, 6)), (3, 8, 8))
    for space in (DARTS, ENAS, PNAS, AmoebaNet, NASNet)
}
SPACES = HUB | {f"{name}-one-cell-stages": space for name, space in NDS.items()}


def supernet_of(model_space, strategy=RandomOneShot):
    """Build a supernet in evaluation mode, whose BN layers are not those of the initialisation."""
    torch.manual_seed(0)
    supernet = strategy().mutate_model(model_space)
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return supernet.eval()


def tensors(model):
    return [*model.named_parameters(), *model.named_buffers()]


def architectures(supernet, count):
    space, generator = search_space(supernet), np.random.default_rng(0)
    return [space.sample(generator) for _ in range(count)]


@pytest.mark.parametrize("name", SPACES)
def test_subnets_compute_what_the_supernet_does_and_share_nothing(name):
    build, shape = SPACES[name]
    model_space = build()
    supernet = supernet_of(copy.deepcopy(model_space))
    before = copy.deepcopy(supernet.state_dict())
    memory = {t.untyped_storage().data_ptr() for _, t in tensors(supernet) if t.numel()}
    parameters = subnet_parameters(supernet)
    x = torch.randn(2, *shape)
    outputs = set()
    for architecture in architectures(supernet, 6):
        subnet = extract(supernet, architecture)
        activate(supernet, architecture)
        with torch.no_grad():
            output = subnet(x)
            assert torch.equal(output, supernet(x))
        outputs.add(output.sum().item())
        if name in HUB:  # elsewhere NNI freezes another model than the supernet trains
            alone = model_space.freeze(sample_of(architecture, model_space)).eval()
            alone.load_state_dict(subnet.state_dict())
            with torch.no_grad():
                assert torch.equal(alone(x), output)
        for tensor_name, tensor in tensors(subnet):
            assert not tensor.numel() or tensor.untyped_storage().data_ptr() not in memory, (
                tensor_name
            )
        assert sum(p.numel() for p in subnet.parameters()) == parameters(architecture)
        assert all(p.requires_grad for p in subnet.parameters())
        for _, tensor in tensors(subnet):
            tensor.data.zero_()
    assert len(outputs) == 6
    for key, value in supernet.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["NasBench201", "MobileNetV3", "AutoFormer", "DARTS-width-depth"])
def test_subnets_train_alone_and_pickle(name):
    build, shape = HUB[name]
    supernet = supernet_of(build())
    subnet = extract(supernet, architectures(supernet, 1)[0]).train()
    assert not subnet.simplify()  # nothing is left to choose
    subnet = pickle.loads(pickle.dumps(subnet))
    optimizer = torch.optim.SGD(subnet.parameters(), 0.1)
    subnet(torch.randn(4, *shape)).square().mean().backward()
    trained = [p for p in subnet.parameters() if p.grad is not None]
    kept = [p.clone() for p in trained]
    optimizer.step()
    assert trained
    assert not all(torch.equal(p, q) for p, q in zip(trained, kept, strict=True))


@pytest.mark.parametrize("name", ["NasBench201", "ProxylessNAS"])
def test_proxyless_supernets(name):
    build, shape = HUB[name]
    supernet = supernet_of(build(), Proxyless)
    x = torch.randn(2, *shape)
    for architecture in architectures(supernet, 5):
        subnet = extract(supernet, architecture)
        activate(supernet, architecture)
        with torch.no_grad():
            assert torch.equal(subnet(x), supernet(x))
        assert not any("_arch_alpha" in key for key in subnet.state_dict())


def test_double_precision_and_frozen_weights_are_inherited():
    build, shape = HUB["MobileNetV3"]
    supernet = supernet_of(build()).double()
    supernet.stem.requires_grad_(False)
    architecture = architectures(supernet, 1)[0]
    with torch.no_grad():  # as scoring code may call it
        subnet = extract(supernet, architecture)
    assert all(p.dtype is torch.float64 for p in subnet.parameters())
    frozen = {key for key, p in subnet.named_parameters() if not p.requires_grad}
    assert frozen == {key for key, _ in subnet.named_parameters() if key.startswith("stem.")}
    x = torch.randn(2, *shape, dtype=torch.float64)
    activate(supernet, architecture)
    assert torch.equal(subnet(x), supernet(x))


def test_random_numbers_are_left_alone():
    supernet = supernet_of(HUB["MobileNetV3"][0]())
    state = torch.random.get_rng_state()
    extract(supernet, architectures(supernet, 1)[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_layer_that_is_used_twice_is_one_layer_of_the_subnet():
    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            self.first = LayerChoice([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)], label="layer")
            self.second = self.first

        def forward(self, x):
            return self.second(self.first(x).relu())

    supernet = supernet_of(Space())
    supernet.second = supernet.first
    subnet = extract(supernet, {"layer": 1})
    assert subnet.first is subnet.second
    assert len(list(subnet.parameters())) == 1


@pytest.mark.parametrize("name", HUB)
def test_recalibrated_score_is_that_of_the_subnet_recalibrated_alone(name):
    build, shape = HUB[name]
    torch.manual_seed(0)
    supernet = RandomOneShot().mutate_model(build())
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(24, *shape, generator=generator) * 2 + 1
    labels = torch.randint(10, (24,), generator=generator)
    calibration, scored = [(images[:8], labels[:8]), (images[8:14], labels[8:14])], images[14:]
    evaluator = SupernetEvaluator([(scored, labels[14:])], calibration=calibration)
    for architecture in architectures(supernet, 3):
        in_supernet = evaluator.score(supernet, sample_of(architecture, supernet))
        subnet = extract(supernet, architecture)
        assert evaluator.evaluate(subnet) == in_supernet.accuracy
        # Torch's own cumulative average.
        for module in subnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
                module.train()
        with torch.no_grad():
            for x, _ in calibration:
                subnet(x)
            logits = subnet.eval()(scored)
        assert in_supernet.loss == pytest.approx(
            nn.functional.cross_entropy(logits, labels[14:]).item(), rel=1e-4
        )
        assert in_supernet.accuracy == (logits.argmax(1) == labels[14:]).sum().item() / 10


def test_few_shot_supernets(classification):
    strategy = FewShotOneShot(label="cell/0_1", epochs=1)
    supernet = strategy.mutate_model(HUB["NasBench201"][0]())
    strategy.mutate_evaluator(classification(examples=4)).evaluate(supernet)
    architecture = architectures(supernet, 1)[0]
    owner = strategy.supernet_of(architecture).model.eval()
    subnet = extract(owner, architecture)
    activate(owner, architecture)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(subnet(x), owner(x))


def test_fused_timm_supernet():
    pytest.importorskip("timm")
    from nas_dynamic.adapters.timm.nni import model_space
    from tests.timm.loop import tiny_supernet

    supernet = supernet_of(model_space(tiny_supernet()))
    x = torch.randn(2, 3, 16, 16)
    for architecture in architectures(supernet, 5):
        subnet = extract(supernet, architecture)
        activate(supernet, architecture)
        with torch.no_grad():
            assert torch.equal(subnet(x), supernet(x))
        assert len(pickle.dumps(subnet)) < len(pickle.dumps(supernet)) / 2


def test_refusals():
    space = HUB["NasBench201"][0]
    supernet = RandomOneShot().mutate_model(space())
    with pytest.raises(ValueError, match=r"NasBench201 is no supernet.*strategy\.supernet"):
        extract(space(), {})
    with pytest.raises(ValueError, match="chooses nothing for 'cell/0_1'"):
        extract(supernet, {})
    with pytest.raises(ValueError, match="'conv' is not a candidate of 'cell/0_1'"):
        extract(supernet, dict.fromkeys(search_space(supernet).labels, "conv"))
    mixed = DifferentiableNAS().mutate_model(space())
    with pytest.raises(TypeError, match="DifferentiableMixedLayer is a supernet module"):
        extract(mixed, dict.fromkeys(search_space(mixed).labels, "conv_1x1"))

    class Another(PathSamplingLayer):
        def _reduction(self, items, sampled):
            return 2 * items[0]

    supernet.cells[0].layers[0][0].__class__ = Another
    with pytest.raises(TypeError, match="Another is a supernet module"):
        extract(supernet, dict.fromkeys(search_space(supernet).labels, "conv_1x1"))


def test_spaces_of_the_hub_that_nni_cannot_train():
    """Should NNI learn to, they belong in the tests above."""
    with pytest.raises(TypeError, match="NasBench101Cell"):
        RandomOneShot().mutate_model(NasBench101(8, num_modules_per_stack=1))


def test_enas_supernets():
    pytest.importorskip("tianshou")
    build, shape = HUB["DARTS"]
    supernet = supernet_of(build(), lambda: EnasStrategy(reward_metric_name="val_acc"))
    architecture = architectures(supernet, 1)[0]
    subnet = extract(supernet, architecture)
    activate(supernet, architecture)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(subnet(x), supernet(x))
