"""What all supernets of the adapter share: the protocol, and which subnet is computed when."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, UniformSampler, host
from nas_dynamic.adapters.timm import Supernet, attach, elastic_vit, fuse, mobile_supernet
from nas_dynamic.complexity import population
from nas_dynamic.evaluation import evaluate
from tests.timm.loop import random_subnets, tiny_supernet

pytestmark = pytest.mark.host


@functools.cache
def built(kind):
    torch.manual_seed(0)
    if kind == "mobile_supernet":
        return tiny_supernet()
    if kind == "mobile_supernet of UIB":
        arch_def = [["uir_r2_a3_k3_s2_e2_c8"], ["uir_r2_a0_k3_s2_e2_c16"]]
        sizes = {"stem_size": 8, "num_features": 16, "num_classes": 4}
        return mobile_supernet(
            arch_def,
            kernel=(0, 3),
            start_kernel=(0, 3),
            skip=True,
            model_class=MobileNetV3,
            **sizes,
        )
    if kind == "fuse":
        return fuse({"plain": "test_resnet", "se": resnet_with_se()}, num_classes=4)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4}
    model = VisionTransformer(img_size=16, patch_size=4, **sizes)
    return elastic_vit(model, depth=[1, 2], embed_dim=[16, 32], mlp_ratio=[2, 4])


def resnet_with_se():
    return {"model_name": "test_resnet", "block_args": {"attn_layer": "se"}}


@pytest.fixture(params=["mobile_supernet", "mobile_supernet of UIB", "fuse", "elastic_vit"])
def supernet(request):
    return copy.deepcopy(built(request.param)).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def computes(supernet, architecture, images):
    """Whether the supernet, in the mode that it has, gives the output of a subnet."""
    twin = supernet.extract(architecture)
    return torch.equal(supernet(images), twin(images))


def test_every_builder_makes_a_supernet(supernet):
    assert isinstance(supernet, Supernet)
    assert isinstance(supernet, host.Supernet)
    assert supernet.sampled is None
    assert supernet.architecture == supernet.base
    least, most = sorted(map(supernet.subnet_parameters(), random_subnets(supernet, 2)))
    assert 0 < least <= most


def test_the_sampled_subnet_is_of_training_mode_alone(supernet, images):
    active, sampled = random_subnets(supernet, 2)
    supernet.activate(active)
    supernet.train().sampled = sampled
    assert computes(supernet, sampled, images)
    supernet.eval()
    assert supernet.architecture == active
    with torch.no_grad():  # parts of the supernet change with the mode, too
        features = supernet.forward_features(images)
        assert torch.equal(features, supernet.extract(active).forward_features(images))
    assert computes(supernet, active, images)
    supernet.train().sampled = None
    assert computes(supernet, active, images)


def test_an_evaluation_in_the_midst_of_an_update_leaves_the_sampled_subnet(supernet, images):
    active, sampled = random_subnets(supernet, 2)
    supernet.activate(active)
    supernet.train().sampled = sampled
    # It puts the modes back without a call of `train`.
    scored = evaluate(supernet, [(images, torch.tensor([0, 1, 2]))])
    assert scored == evaluate(supernet.extract(active), [(images, torch.tensor([0, 1, 2]))])
    assert supernet.training
    assert computes(supernet, sampled, images)


def test_a_sampled_subnet_of_another_space_is_refused(supernet):
    with pytest.raises(ValueError, match="chooses nothing for"):
        supernet.sampled = {}
    assert supernet.sampled is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_has_an_active_subnet_and_none_that_is_sampled(supernet, images, copied):
    active, sampled, other = random_subnets(supernet, 3)
    supernet.activate(active)
    supernet.train().sampled = sampled
    twin = copied(supernet)
    assert twin.sampled is None
    assert computes(twin, active, images)
    twin.activate(other)
    assert supernet.architecture == active
    assert supernet.sampled == sampled
    assert computes(supernet, sampled, images)


def test_a_loop_of_ones_own_does_what_attach_does(supernet, images):
    twin, steps = copy.deepcopy(supernet).train(), 6
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1, momentum=0.9)
    options = {"total_steps": steps, "seed": 3, "momentum": True}
    attached = attach(optimizer, supernet.train(), **options).training

    sampler, parameters = UniformSampler(twin.space, seed=3), twin.subnet_parameters()
    own_optimizer = create_optimizer_v2(twin, opt="sgd", lr=0.1, momentum=0.9)
    sizes = population(twin.space, parameters)
    own = DynamicTraining(
        own_optimizer,
        architecture=lambda: twin.sampled,
        calr=CaLR(parameters, total_steps=steps, population=sizes),
        momentum=MomentumSeparation(attached.momentum.group_by),
        space=twin.space,
    )
    for _ in range(steps):
        twin.sampled = sampler.sample()
        for model, stepped in ((supernet, optimizer), (twin, own_optimizer)):
            stepped.zero_grad()
            model(images).square().mean().backward()
            stepped.step()
        assert supernet.sampled == twin.sampled
    assert attached.updates == own.updates == steps
    assert own.groups == attached.groups
    for one, other in zip(supernet.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
