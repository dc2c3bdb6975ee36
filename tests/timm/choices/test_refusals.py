"""Illegal requests are refused, with what to change."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from nas_dynamic.adapters.timm import fuse, mobile_supernet
from tests.timm.choices.supernets import SMALL_ARCH_DEF, UIB_ARCH_DEF, built

pytestmark = pytest.mark.host


def resnet18(*layers: int) -> dict[str, object]:
    return {"model_name": "resnet18", "layers": layers}


def reused(groups: int) -> nn.Module:
    layer = nn.Conv2d(3, 3, 1, groups=groups)
    return nn.Sequential(layer, layer)


ILLEGAL = {
    "skip across a stride": (
        lambda: mobile_supernet(SMALL_ARCH_DEF, kernel=(3, 5), skip=["blocks.2.0"]),
        r"'blocks\.2\.0' cannot be left out: it is the first layer of its stage.*can: blocks\.1\.1",
    ),
    "skip where the shape changes": (
        lambda: mobile_supernet(
            [["ds_r1_k3_s1_e1_c8"], ["ir_r1_k3_s2_e3_c16", "ir_r1_k3_s1_e3_c24"]],
            kernel=(3, 5),
            skip=["blocks.1.1"],
        ),
        r"'blocks\.1\.1' cannot be left out: it maps 16×56×56 to 24×56×56",
    ),
    "skip of no layer": (
        lambda: fuse("resnet18", skip=["layer9.0"]),
        r"'layer9\.0', which is no layer; layers are layer1\.0; layer1\.1",
    ),
    "skip as a string": (lambda: fuse("resnet18", skip="layer1.1"), "a collection of paths"),
    "models of two classes": (
        lambda: fuse({"a": "resnet18", "b": "test_efficientnet"}),
        "differ in more than layers: the model is ResNet in 'a' and EfficientNet in 'b'",
    ),
    "models of two widths": (
        lambda: fuse({"a": "mnasnet_050", "b": "mnasnet_100"}),
        r"differ in more than layers: conv_stem is Conv2d\(3, 16.* the same widths",
    ),
    "layers of two widths": (
        lambda: fuse(
            {
                n: {"model_name": "resnet18", "channels": c}
                for n, c in {"a": (64, 128, 256, 512), "b": (64, 96, 256, 512)}.items()
            }
        ),
        r"'layer2\.0' maps 64×56×56 to 128×28×28 in 'a' and 64×56×56 to 96×28×28 in 'b'",
    ),
    "models of two drop rates": (
        lambda: fuse({"a": "resnet18", "b": {"model_name": "seresnet18", "drop_rate": 0.5}}),
        r"the model is of drop_rate=0\.0 in 'a' and of drop_rate=0\.5 in 'b'",
    ),
    "equal models": (
        lambda: fuse({"a": "resnet18", "b": "resnet18"}),
        "'a', 'b' differ in none of the 8 layers. Give models that do, or skip=True",
    ),
    "nothing to skip": (
        lambda: fuse("test_resnet", skip=True),
        "nothing to choose: .* none of the 4 layers, none of which can be left out",
    ),
    "no models": (lambda: fuse({}), "needs at least one model"),
    "models and names": (
        lambda: fuse({"a": "resnet18", "b": timm.create_model("test_resnet")}),
        "all in the same way; got a ResNet",
    ),
    "arguments for built models": (
        lambda: fuse({"a": timm.create_model("test_resnet")}, num_classes=3),
        "num_classes: arguments of timm.create_model have no effect",
    ),
    "layers that no model has all of": (
        lambda: fuse({"a": resnet18(2, 1, 1, 1), "b": resnet18(1, 2, 1, 1)}),
        r"'b' has layers that 'a', the model with the most layers, lacks: layer2\.1\. Add a model",
    ),
    "layers that no model has all of, the other way round": (
        lambda: fuse({"b": resnet18(1, 2, 1, 1), "a": resnet18(2, 1, 1, 1)}, skip=True),
        r"'a' has layers that 'b', .*: layer1\.1\. Add",
    ),
    "a layer left out as a name": (lambda: fuse({"skip": "resnet18"}), "'skip' cannot name a"),
    "a point in a name": (lambda: fuse({"resnet18.a1_in1k": "resnet18"}), "cannot name a model"),
    "an attribute as a name": (lambda: fuse({"values": "resnet18"}), "'values' cannot name"),
    "no name": (lambda: fuse({"": "resnet18"}), "'' cannot name a model"),
    "an argument that no recipe holds": (
        lambda: fuse("resnet18", skip=True, norm_layer=lambda width: nn.BatchNorm2d(width)),
        r"norm_layer is <function .*imported by name",
    ),
    "no group_matcher": (
        lambda: fuse({"a": nn.Sequential(nn.Linear(2, 2))}),
        "Sequential has no group_matcher",
    ),
    "group_matcher that is a function": (
        lambda: fuse("inception_v3", skip=True),
        "InceptionV3 has no group_matcher that tells the paths of its layers; give layers=",
    ),
    "layers of lists": (
        lambda: fuse("densenet121", skip=True),
        r"'features\.denseblock1\.denselayer1' of DenseNet does not map a tensor .* Give layers=",
    ),
    "a layer in two places": (
        lambda: fuse({"a": reused(groups=1), "b": reused(groups=3)}, layers="0"),
        "layer '0' is used in more than one place: 0; 1. A choice needs a layer of its own",
    ),
    "layers that match nothing": (lambda: fuse("resnet18", layers="block"), "matches 'block'"),
    "ResNet as a mobile model": (
        lambda: mobile_supernet("resnet18", kernel=(3, 5)),
        "'resnet18' is a ResNet; .* Use fuse",
    ),
    "start kernels without UIB": (
        lambda: mobile_supernet("mnasnet_050", start_kernel=(0, 3)),
        "start_kernel is of uir blocks, the UIB of MobileNetV4 and V5, and 'mnasnet_050' has none",
    ),
    "no kernel without UIB": (lambda: mobile_supernet("mnasnet_050", kernel=(0, 3)), "odd sizes,"),
    "even kernel in UIB": (
        lambda: mobile_supernet(UIB_ARCH_DEF, kernel=(0, 4)),
        "kernel must be a sequence of odd sizes, or 0 for none",
    ),
    "edge residuals without a kernel": (
        lambda: mobile_supernet(UIB_ARCH_DEF, kernel=(0,)),
        r"'blocks\.0\.0', of type er and stride 2, needs a kernel.*add a size to kernel",
    ),
    "a stride without a kernel": (
        lambda: mobile_supernet(UIB_ARCH_DEF[1:], kernel=(0,), start_kernel=(0,)),
        r"'blocks\.0\.0', of type uir and stride 2, needs a kernel",
    ),
    "attention at the end of a stage": (
        lambda: mobile_supernet(UIB_ARCH_DEF, kernel=(3, 5), skip=["blocks.2.3"]),
        r"'blocks\.2\.3' cannot be left out: it ends a stage with attention",
    ),
    "no inverted residuals": (
        lambda: mobile_supernet([["ds_r2_k3_s1_e1_c8"]], kernel=(3, 5)),
        "blocks of type ds only",
    ),
    "even kernel": (lambda: mobile_supernet("mnasnet_050", kernel=(3, 4)), "odd sizes"),
    "negative expansion": (lambda: mobile_supernet("mnasnet_050", expansion=(0,)), "positive"),
    "SE above 1": (lambda: mobile_supernet("mnasnet_050", se=(4,)), r"in \[0, 1\]"),
    "unknown activation": (lambda: mobile_supernet("mnasnet_050", activation=("elu",)), "relu6"),
    "nothing asked for": (lambda: mobile_supernet("mnasnet_050"), "nothing to choose"),
    "model class": (
        lambda: mobile_supernet(SMALL_ARCH_DEF, kernel=(3, 5), model_class=ResNet),
        "EfficientNet, MobileNetV3, .*, got ResNet",
    ),
}


@pytest.mark.parametrize("request_", ILLEGAL)
def test_illegal_requests_say_what_to_change(request_):
    make, message = ILLEGAL[request_]
    with pytest.raises(ValueError, match=message):
        make()


def test_architectures_and_weights_are_checked():
    supernet = copy.deepcopy(built("MBConv"))
    with pytest.raises(ValueError, match=r"chooses nothing for 'blocks\.1\.0'"):
        supernet.activate({})
    with pytest.raises(ValueError, match=r"has a choice 'blocks\.9\.9' that the space does not"):
        supernet.extract(supernet.base | {"blocks.9.9": "k3_e3"})
    with pytest.raises(ValueError, match=r"'skip' is not a candidate of 'blocks\.1\.0'"):
        supernet.describe(supernet.base | {"blocks.1.0": "skip"})
    weights = supernet.extract(supernet.base).state_dict()
    before = copy.deepcopy(supernet.state_dict())
    other = weights | {"classifier.weight": torch.zeros(7, 32), "classifier.bias": torch.zeros(7)}
    with pytest.raises(
        ValueError,
        match=r"'classifier\.weight' of shape \(7, 32\), the subnet \(10, 32\).*num_classes",
    ):
        supernet.inherit(other)
    wrong = dict.fromkeys(supernet.space.labels, "k7_e6")
    with pytest.raises(ValueError, match="Give the architecture that the checkpoint is of"):
        supernet.inherit(weights, wrong)
    assert all(torch.equal(before[k], v) for k, v in supernet.state_dict().items())


def test_a_checkpoint_of_a_base_that_is_no_subnet_is_refused(tmp_path):
    path = tmp_path / "mnasnet.pth"
    donor = timm.create_model("mnasnet_small", num_classes=3)
    torch.save(donor.state_dict(), path)
    options = {"checkpoint_path": str(path), "num_classes": 3}
    supernet = mobile_supernet("mnasnet_small", kernel=(3, 5, 7), **options)
    assert torch.equal(supernet.conv_stem.weight, donor.conv_stem.weight)
    with pytest.raises(ValueError, match="weights of 'mnasnet_small' cannot be inherited: it is"):
        mobile_supernet("mnasnet_small", expansion=(2, 5), **options)


def test_classifier_cannot_be_reset():
    with pytest.raises(RuntimeError, match="give num_classes where you make the supernet"):
        copy.deepcopy(built("MBConv")).reset_classifier(3)
