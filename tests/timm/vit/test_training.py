"""Training of an elastic vision transformer: what has gradients, and by which optimizer."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.adapters.timm import attach, elastic_vit
from nas_dynamic.complexity import bounds, count_parameters
from tests.timm.loop import random_subnets
from tests.timm.vit.models import SIZES, images, tiny

pytestmark = pytest.mark.host


def padded(name, gradient, shape):
    """The gradient of a slice in a tensor of zeros of the whole shape."""
    whole = torch.zeros(shape)
    if ".qkv." in name:
        for full, part in zip(whole.chunk(3), gradient.chunk(3), strict=True):
            full[tuple(slice(n) for n in part.shape)] = part
    else:
        whole[tuple(slice(n) for n in gradient.shape)] = gradient
    return whole


def test_gradients_reach_the_active_slices_and_nothing_else():
    supernet = elastic_vit(tiny(init_values=0.1, qk_norm=True), **SIZES)
    for architecture in random_subnets(supernet, 8):
        subnet, x, y = supernet.extract(architecture), images(), torch.tensor([0, 1, 2])
        supernet.activate(architecture)
        supernet.zero_grad()
        for model in (subnet, supernet):
            cross_entropy(model(x), y).backward()
        expected = {name: p.grad for name, p in subnet.named_parameters()}
        for name, parameter in supernet.named_parameters():
            if name in expected:
                whole = padded(name, expected[name], parameter.shape)
                assert torch.equal(parameter.grad, whole), name
                assert whole.any(), name
            else:
                assert name.startswith("blocks.2."), name
                assert parameter.grad is None, name


def test_timms_checkpointing_and_features_see_the_active_blocks():
    supernet, x = elastic_vit(tiny(), **SIZES).train(), images()
    (architecture,) = random_subnets(supernet, 1)
    architecture["depth"] = 2
    supernet.activate(architecture)
    supernet(x).sum().backward()
    plain = {name: p.grad for name, p in supernet.named_parameters()}
    supernet.zero_grad()
    supernet.set_grad_checkpointing()
    supernet(x).sum().backward()
    for name, parameter in supernet.named_parameters():
        if name.startswith("blocks.2."):
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, plain[name])
    features = supernet.forward_intermediates(x, intermediates_only=True)
    assert [f.shape[1] for f in features] == [architecture["embed_dim"]] * 2


@pytest.mark.parametrize("kind", ["softmax", "linear"])
def test_bf16_autocast(kind):
    supernet, x = elastic_vit(tiny(), **SIZES), images()
    (architecture,) = random_subnets(supernet, 1)
    architecture |= {f"attention{i}": kind for i in (1, 2, 3)}
    supernet.activate(architecture)
    with torch.autocast("cpu", torch.bfloat16):
        output = supernet(x)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, supernet.extract(architecture)(x))
    cross_entropy(output.float(), torch.tensor([0, 1, 2])).backward()
    assert all(torch.isfinite(p.grad).all() for p in supernet.parameters() if p.grad is not None)


def test_a_subnet_compiles_to_one_graph():
    supernet, x = elastic_vit(tiny(), **SIZES), images()
    compiled = torch.compile(supernet, backend="eager", fullgraph=True)
    (architecture,) = random_subnets(supernet, 1)
    supernet.activate(architecture)
    assert torch.equal(compiled(x), supernet.extract(architecture)(x))


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adamw": partial(torch.optim.AdamW, lr=0.003, weight_decay=0.05),
}


@pytest.mark.parametrize(("optimizer", "idle"), [("sgd", "coast"), ("adamw", "freeze")])
def test_dynamic_training_equals_one_optimizer_for_each_group(optimizer, idle):
    steps = 12
    build_optimizer = OPTIMIZERS[optimizer]
    supernets = [elastic_vit(tiny(), **SIZES).train()]
    supernets.append(copy.deepcopy(supernets[0]))
    parameters = supernets[0].subnet_parameters()
    c_min, c_max = bounds(supernets[0].space, parameters)
    sampler = UniformSampler(supernets[0].space, seed=1)
    batches = [(images(), torch.randint(5, (3,)), sampler.sample()) for _ in range(steps)]

    supernet = supernets[0]
    single = build_optimizer(supernet.parameters())
    DynamicTraining(
        single,
        architecture=lambda: supernet.architecture,
        calr=CaLR(parameters, total_steps=steps, bounds=(c_min, c_max)),
        momentum=MomentumSeparation(group_by="depth"),
        idle=idle,
        space=supernet.space,
    )
    for x, y, architecture in batches:
        supernet.activate(architecture)
        single.zero_grad()
        cross_entropy(supernet(x), y).backward()
        single.step()

    by_hand = supernets[1]
    groups = {depth: build_optimizer(by_hand.parameters()) for depth in SIZES["depth"]}
    for t, (x, y, architecture) in enumerate(batches):
        by_hand.activate(architecture)
        by_hand.zero_grad(set_to_none=idle == "freeze")
        cross_entropy(by_hand(x), y).backward()
        size = count_parameters(by_hand.extract(architecture))
        gamma = 4 - (4 - 0.25) * math.log(size / c_min) / math.log(c_max / c_min)
        group = groups[architecture["depth"]]
        for param_group in group.param_groups:
            param_group["lr"] = build_optimizer.keywords["lr"] * (1 - t / steps) ** gamma
        group.step()

    for one, other in zip(supernet.parameters(), by_hand.parameters(), strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


def test_attached_supernet_trains_what_it_draws_and_validates_what_is_activated():
    supernet, x = elastic_vit(tiny(), **SIZES).train(), images()
    optimizer = create_optimizer_v2(supernet, opt="adamw", lr=1e-3)
    attach(optimizer, supernet, group_by="depth", total_steps=4)
    parameters = dict(supernet.named_parameters())
    (validated,) = random_subnets(supernet, 1)
    supernet.activate(validated)
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(supernet(x), torch.tensor([0, 1, 2])).backward()
        width, deep = supernet.sampled["embed_dim"], supernet.sampled["depth"] == 3
        (used,) = parameters["norm.weight"].grad.nonzero(as_tuple=True)
        assert used.tolist() == list(range(width))
        assert (parameters["blocks.2.norm1.weight"].grad is not None) == deep
        optimizer.step()
        ema = copy.deepcopy(supernet).eval()
        assert torch.equal(ema(x), supernet.extract(validated).eval()(x))
        assert supernet.architecture == validated
