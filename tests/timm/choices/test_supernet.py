"""Layer-choice supernets: what is a choice, what is shared, what is trained and inherited."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from timm.models.mobilenetv5 import MobileNetV5
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from nas_dynamic.adapters.timm import fuse, mobile_supernet
from nas_dynamic.complexity import count_parameters
from tests.timm.choices.supernets import SMALL_ARCH_DEF, UIB_ARCH_DEF, built, images
from tests.timm.loop import random_subnets

pytestmark = pytest.mark.host


def test_supernet_is_a_model_of_timms_class(supernet, name):
    assert isinstance(supernet, supernet.timm_class)
    assert supernet.num_classes == 10
    x = images(name)
    with torch.no_grad():
        features = supernet.forward_features(x)
        assert torch.equal(supernet.forward_head(features), supernet(x))
    groups = timm.models.group_parameters(supernet, supernet.group_matcher(), reverse=True)
    plain = timm.models.group_parameters(
        supernet.extract(supernet.base), supernet.group_matcher(), reverse=True
    )
    for label, choice in supernet.choices().items():
        layers = {groups[f"{label}.{n}"] for n, _ in choice.named_parameters()}
        assert len(layers) == 1
    assert groups[next(iter(groups))] == plain[next(iter(plain))] == 0


def test_copies_and_pickles(supernet, name):
    (architecture,) = random_subnets(supernet, 1)
    supernet.activate(architecture)
    x = images(name)
    with torch.no_grad():
        expected = supernet(x)
        for twin in (copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))):
            assert twin.architecture == architecture
            assert torch.equal(twin(x), expected)
            twin.activate(twin.base)
    assert supernet.architecture == architecture


def test_only_the_active_subnet_gets_gradients():
    supernet = copy.deepcopy(built("MBConv")).train()
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        supernet.zero_grad()
        supernet(images("MBConv")).sum().backward()
        trained = {n for n, p in supernet.named_parameters() if p.grad is not None}
        for label, choice in supernet.choices().items():
            expected = {
                f"{label}.{n}"
                for n, _ in choice.named_parameters()
                if n.startswith(f"{architecture[label]}.")
            }
            assert {n for n in trained if n.startswith(label + ".")} == expected


def test_candidates_are_combinations_and_skip_is_where_it_can():
    supernet = built("MBConv")
    operations = ("k3_e3", "k3_e6", "k5_e3", "k5_e6", "k7_e3", "k7_e6")
    assert supernet.space.choices == {
        "blocks.1.0": operations,
        "blocks.1.1": (*operations, "skip"),
        "blocks.1.2": (*operations, "skip"),
        "blocks.2.0": operations,
        "blocks.2.1": (*operations, "skip"),
        "blocks.3.0": operations,
        "blocks.3.1": (*operations, "skip"),
    }
    label = "blocks.1.1"
    kernels = {
        n: c.conv_dw.kernel_size[0] for n, c in supernet.choices()[label].items() if n != "skip"
    }
    assert kernels == {n: int(n[1]) for n in operations}
    widths = {
        n: c.conv_pw.out_channels for n, c in supernet.choices()[label].items() if n != "skip"
    }
    assert widths == {n: 16 * int(n[4]) for n in operations}
    # What is not given stays as the arch_def has it.
    assert hasattr(supernet.choices()[label]["k3_e3"].se, "conv_reduce")
    assert isinstance(supernet.choices()["blocks.3.0"]["k3_e3"].bn1.act, nn.Hardswish)


def test_activations_are_of_the_candidates():
    supernet = mobile_supernet(
        SMALL_ARCH_DEF, activation=("relu", "hard_swish"), num_classes=3, num_features=16
    ).eval()
    assert supernet.base == {
        label: "nhs" if label.startswith("blocks.3") else "nre" for label in supernet.space.labels
    }
    mixed = supernet.base | {"blocks.1.1": "nhs"}
    model = supernet.extract(mixed)
    kinds = [type(block.bn1.act) for block in model.blocks[1]]
    assert kinds == [nn.ReLU, nn.Hardswish, nn.ReLU]
    x = images("MBConv")
    supernet.activate(mixed)
    with torch.no_grad():
        assert torch.equal(model(x), supernet(x))


def test_mnasnet_by_name():
    torch.manual_seed(0)
    plain = timm.create_model("mnasnet_small", num_classes=10).eval()
    torch.manual_seed(0)
    supernet = mobile_supernet("mnasnet_small", skip=True, num_classes=10).eval()
    x = images("MBConv")
    with torch.no_grad():
        assert torch.equal(supernet(x), plain(x))
        for architecture in random_subnets(supernet, 5):
            supernet.activate(architecture)
            assert torch.equal(supernet(x), supernet.extract(architecture)(x))


def test_uib_candidates_are_all_kinds_that_timm_can_build():
    supernet = built("MobileNetV4")
    kernels = [(a, k) for a in (0, 3, 5) for k in (0, 3, 5)]
    every = tuple(f"a{a}_k{k}_e{e}" for a, k in kernels for e in (2, 4))
    strided = every[2:]  # a block with a stride needs a kernel that takes it
    assert supernet.space.choices == {
        "blocks.0.0": ("k3_e2", "k3_e4", "k5_e2", "k5_e4"),
        "blocks.1.0": strided,
        "blocks.1.1": (*every, "skip"),
        "blocks.1.2": (*every, "skip"),
        "blocks.2.0": strided,
        "blocks.2.1": ("keep", "skip"),
        "blocks.2.2": (*every, "skip"),
        "blocks.2.3": every,
    }
    for name, layer in supernet.choices()["blocks.1.1"].items():
        if name == "skip":
            continue
        convs = [m for m in layer.modules() if isinstance(m, nn.Conv2d)]
        depthwise = [(conv.kernel_size[0], conv.in_channels) for conv in convs if conv.groups > 1]
        start, kernel, expansion = (int(token[1:]) for token in name.split("_"))
        assert depthwise == [(k, w) for k, w in ((start, 24), (kernel, 24 * expansion)) if k]
        assert len(convs) == len(depthwise) + 2


def test_mobilenetv4_by_name():
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv4_conv_small_050", num_classes=10).eval()
    torch.manual_seed(0)
    supernet = mobile_supernet(
        "mobilenetv4_conv_small_050", kernel=(0, 3, 5), start_kernel=(0, 3, 5), num_classes=10
    ).eval()
    # Its arch_def, as in Table 11 of the paper.
    assert [*supernet.base.values()] == [
        *("a5_k5", "a0_k3", "a0_k3", "a0_k3", "a0_k3", "a3_k0"),
        *("a3_k3", "a5_k5", "a0_k5", "a0_k5", "a0_k3", "a0_k3"),
    ]
    x = images("MobileNetV4")
    with torch.no_grad():
        assert torch.equal(supernet(x), plain(x))
        for architecture in random_subnets(supernet, 5):
            supernet.activate(architecture)
            assert torch.equal(supernet(x), supernet.extract(architecture)(x))


def test_mobilenetv5_fuses_the_features_of_its_stages():
    widths = {"stem_size": 8, "num_features": 32, "num_classes": 5}
    supernet = mobile_supernet(
        UIB_ARCH_DEF[:3], kernel=(0, 3), start_kernel=(0, 3), model_class=MobileNetV5, **widths
    ).eval()
    table, x = supernet.subnet_parameters(), torch.randn(1, 3, 64, 64)
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        model = supernet.extract(architecture)
        assert type(model) is MobileNetV5
        assert table(architecture) == count_parameters(model)
        with torch.no_grad():
            assert torch.equal(model(x), supernet(x))


def test_models_of_ones_own():
    def model(**kwargs):
        torch.manual_seed(0)
        return ResNet(
            BasicBlock, (1, 2, 1, 1), num_classes=5, channels=(8, 8, 16, 16), stem_width=8, **kwargs
        )

    plain, se = model(), model(block_args={"attn_layer": "se"})
    supernet = fuse({"plain": plain, "se": se}, skip=["layer2.1"]).eval()
    assert supernet.space.choices["layer2.1"] == ("plain", "se", "skip")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(supernet(x), plain.eval()(x))
        for architecture in random_subnets(supernet, 20):
            supernet.activate(architecture)
            extracted = supernet.extract(architecture)
            assert type(extracted) is ResNet
            assert torch.equal(extracted(x), supernet(x))
    with pytest.raises(ValueError, match="do not tell how they were built; give fuse"):
        supernet.describe(supernet.base)
    assert type(plain) is ResNet


def test_starts_as_the_first_model_with_its_weights():
    models = {name: timm.create_model(name, num_classes=5) for name in ("resnet18", "resnet34")}
    shallow_first = fuse(models).eval()
    deep_first = fuse(dict(reversed(models.items()))).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(shallow_first(x), models["resnet18"].eval()(x))
        assert torch.equal(deep_first(x), models["resnet34"].eval()(x))
    assert set(shallow_first.base.values()) == {"skip"}


@pytest.mark.parametrize("crop", [False, True])
def test_inherits_a_model_exactly(crop):
    torch.manual_seed(1)
    model = mobile_supernet(SMALL_ARCH_DEF, kernel=(5,), expansion=(6,), num_classes=10, skip=True)
    donor = model.extract(model.base).eval()
    supernet = mobile_supernet(
        SMALL_ARCH_DEF, kernel=(3, 5, 7), expansion=(3, 6), num_classes=10, skip=True
    ).eval()
    architecture = dict.fromkeys(supernet.space.labels, "k5_e6")
    supernet.inherit(donor, architecture, crop=crop)
    x = torch.randn(2, 3, 64, 64)
    larger = dict.fromkeys(supernet.space.labels, "k7_e6")
    with torch.no_grad():
        expected = donor(x)
        supernet.activate(architecture)
        assert torch.equal(supernet(x), expected)
        supernet.activate(larger)
        # A kernel padded with zeros computes the same sums in another order.
        assert torch.allclose(supernet(x), expected, atol=1e-4) is crop
    smaller = supernet.choices()["blocks.1.1"]["k3_e3"].conv_dw.weight
    center = supernet.choices()["blocks.1.1"]["k5_e6"].conv_dw.weight[: len(smaller), :, 1:4, 1:4]
    assert torch.equal(smaller, center) is crop
