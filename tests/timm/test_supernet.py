"""Layer-choice supernets: what is a choice, what is shared, and what is extracted."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys
import timeit
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from nas_dynamic.adapters.timm import build, fuse, mobile_supernet
from nas_dynamic.complexity import count_macs, count_parameters, measure_latency
from tests.timm.loop import random_subnets

DOCS = Path(__file__).parents[2] / "docs"

SMALL_ARCH_DEF = [
    ["ds_r1_k3_s1_e1_c8"],
    ["ir_r3_k3_s2_e3_c16_se0.25"],
    ["er_r2_k3_s2_e4_c24"],
    ["ir_r2_k5_s1_e6_c32_nhs"],
]

BUILDERS = {
    "MBConv": lambda: mobile_supernet(
        SMALL_ARCH_DEF,
        kernel=(3, 5, 7),
        expansion=(3, 6),
        skip=True,
        num_classes=10,
        stem_size=8,
        num_features=32,
    ),
    "MobileNetV3-SE": lambda: mobile_supernet(
        "mobilenetv3_small_050",
        kernel=(3, 5),
        se=(0, 0.25),
        skip=True,
        num_classes=10,
    ),
    "ResNet": lambda: fuse(
        {
            "plain": "resnet14t",
            "se": {"model_name": "resnet14t", "block_args": {"attn_layer": "se"}},
            "deep": {"model_name": "resnet14t", "layers": (2, 3, 2, 1)},
        },
        skip=True,
        num_classes=10,
        channels=(16, 24, 32, 40),
    ),
    "ResNet-depth": lambda: fuse("resnet18", skip=True, num_classes=10, channels=(16, 24, 32, 40)),
    "ConvNeXt": lambda: fuse(
        {
            "k7": {"model_name": "convnext_atto", "depths": (2, 2, 3, 2)},
            "k3": {"model_name": "convnext_atto", "depths": (2, 2, 3, 2), "kernel_sizes": 3},
        },
        skip=True,
        num_classes=10,
        dims=(8, 16, 24, 32),
    ),
    "VisionTransformer": lambda: fuse("test_vit", skip=True, num_classes=10),
    "Swin": lambda: fuse(
        {
            "model_name": "swin_tiny_patch4_window7_224",
            "img_size": 64,
            "window_size": 4,
            "embed_dim": 12,
            "depths": (2, 3),
            "num_heads": (2, 4),
        },
        skip=True,
        num_classes=10,
    ),
}

SIZE = {"VisionTransformer": 160, "Swin": 64}


@functools.cache
def built(name):
    torch.manual_seed(0)
    supernet = BUILDERS[name]().eval()
    for module in supernet.modules():
        # New layers would hide a swap of two: trained ones differ in their statistics.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.1)
        if hasattr(module, "gamma") and isinstance(module.gamma, nn.Parameter):
            nn.init.normal_(module.gamma)
    return supernet


@pytest.fixture(params=BUILDERS)
def name(request):
    return request.param


@pytest.fixture
def supernet(name):
    return copy.deepcopy(built(name))


def images(name, count=2):
    size = SIZE.get(name, 48)
    return torch.randn(count, 3, size, size)


def test_extracted_subnets_are_bit_identical(name, supernet):
    x = images(name)
    outputs = []
    for architecture in random_subnets(supernet, 20):
        supernet.activate(architecture)
        model = supernet.extract(architecture)
        assert type(model) is supernet.timm_class
        with torch.no_grad():
            outputs.append(model(x))
            assert torch.equal(supernet(x), outputs[-1])
    assert any(not torch.equal(outputs[0], output) for output in outputs)


@pytest.mark.parametrize("name", ["MBConv", "ResNet"])
def test_extracted_subnets_keep_the_memory_format(supernet, name):
    # Another format takes other kernels, whose last bits differ.
    supernet = supernet.to(memory_format=torch.channels_last)
    x = images(name)
    for architecture in random_subnets(supernet, 5):
        supernet.activate(architecture)
        model = supernet.extract(architecture)
        with torch.no_grad():
            assert torch.equal(supernet(x), model(x))
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_tables_equal_direct_counts(name, supernet):
    size = SIZE.get(name, 48)
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs(size)
    image = torch.zeros(1, 3, size, size, device="meta")
    for architecture in random_subnets(supernet, 20, seed=1):
        model = supernet.extract(architecture)
        assert parameters(architecture) == count_parameters(model)
        assert macs(architecture) == count_macs(model.to("meta"), image)


@pytest.mark.process
def test_recipes_rebuild_without_this_package(tmp_path):
    saved = []
    for name in BUILDERS:
        supernet = built(name)
        (architecture,) = random_subnets(supernet, 1, seed=2)
        model, x = supernet.extract(architecture), images(name)
        recipe = json.dumps(supernet.describe(architecture))
        with torch.no_grad():
            saved.append({"recipe": recipe, "weights": model.state_dict(), "x": x, "y": model(x)})
    torch.save(saved, tmp_path / "subnets.pt")
    # The text of docs/timm.md, run where this package cannot be imported.
    code = (DOCS / "timm.md").read_text().split("<!-- rebuild -->")[1].split("```")[1]
    program = f"""
import sys
sys.modules["nas_dynamic"] = None
{code.removeprefix("python")}
torch.set_num_threads(1)
for subnet in torch.load({str(tmp_path / "subnets.pt")!r}):
    model = build(json.loads(subnet["recipe"]))
    model.load_state_dict(subnet["weights"])
    with torch.no_grad():
        assert torch.equal(model.eval()(subnet["x"]), subnet["y"])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.host
@pytest.mark.parametrize("name", ["MBConv", "MobileNetV3-SE", "ResNet", "ConvNeXt"])
def test_onnx_export_computes_the_same(name, supernet, tmp_path):
    pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    (architecture,) = random_subnets(supernet, 1, seed=4)
    model, x = supernet.extract(architecture), images(name)
    torch.onnx.export(model, (x,), tmp_path / "subnet.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "subnet.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, model(x).numpy(), rtol=1e-3, atol=1e-4)


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


def test_extracted_weights_are_a_copy():
    supernet = copy.deepcopy(built("ResNet"))
    before = copy.deepcopy(supernet.state_dict())
    model = supernet.extract(supernet.base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[k], v) for k, v in supernet.state_dict().items())
    assert not supernet.extract(supernet.base).training
    assert supernet.train().extract(supernet.base).training


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


def test_depth_alone_becomes_a_constructor_argument():
    narrow = {"model_name": "resnet18", "channels": (8, 8, 8, 8)}
    for model, argument in ((narrow, "layers"), ("test_convnext", "depths")):
        supernet = fuse(model, skip=True)
        smallest = supernet.space.smallest(supernet.subnet_parameters())
        recipe = supernet.describe(smallest)
        assert recipe.keys() == {"model"}
        assert recipe["model"]["with"][argument] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("model", "layers", "argument", "depths"),
    [
        ("resnet26", r"layer[34]\.\d+", "layers", [2, 2, 1, 1]),
        ("convnext_atto", r"stages\.2\.blocks\.\d+", "depths", [2, 2, 1, 2]),
    ],
)
def test_depth_of_some_stages(model, layers, argument, depths):
    supernet = fuse(model, skip=True, layers=layers, num_classes=10).eval()
    smallest = dict.fromkeys(supernet.space.labels, "skip")
    assert supernet.describe(smallest)["model"]["with"][argument] == depths
    x = torch.randn(1, 3, 64, 64)
    supernet.activate(smallest)
    with torch.no_grad():
        assert torch.equal(supernet.extract(smallest)(x), supernet(x))


def test_layers_that_the_argument_of_depth_does_not_count_are_removed():
    supernet = fuse("resnet18d", skip=["conv1.3"], layers=r"conv1\.\d", num_classes=10).eval()
    without, x = {"conv1.3": "skip"}, torch.randn(1, 3, 64, 64)
    assert supernet.describe(without)["remove"] == ["conv1.3"]
    supernet.activate(without)
    with torch.no_grad():
        assert torch.equal(supernet.extract(without)(x), supernet(x))


def test_recipes_hold_no_checkpoint(tmp_path):
    path = tmp_path / "resnet18.pth"
    donor = timm.create_model("resnet18", num_classes=10)
    torch.save(donor.state_dict(), path)
    supernet = fuse(
        {"model_name": "resnet18", "checkpoint_path": str(path)}, skip=True, num_classes=10
    )
    assert torch.equal(supernet.conv1.weight, donor.conv1.weight)
    smallest = dict.fromkeys(supernet.space.labels, "skip")
    assert torch.equal(supernet.extract(smallest).conv1.weight, donor.conv1.weight)
    assert "checkpoint_path" not in supernet.describe(supernet.base)["model"]["with"]


def test_a_checkpoint_of_a_base_that_is_no_subnet_is_refused(tmp_path):
    path = tmp_path / "mnasnet.pth"
    donor = timm.create_model("mnasnet_small", num_classes=3)
    torch.save(donor.state_dict(), path)
    options = {"checkpoint_path": str(path), "num_classes": 3}
    supernet = mobile_supernet("mnasnet_small", kernel=(3, 5, 7), **options)
    assert torch.equal(supernet.conv_stem.weight, donor.conv_stem.weight)
    with pytest.raises(ValueError, match="weights of 'mnasnet_small' cannot be inherited: it is"):
        mobile_supernet("mnasnet_small", expansion=(2, 5), **options)


def test_models_of_another_size_of_image():
    supernet = fuse("test_vit", skip=True, img_size=64)
    assert supernet.subnet_macs()(supernet.base) == supernet.subnet_macs(64)(supernet.base)


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


def resnet18(*layers: int) -> dict[str, object]:
    return {"model_name": "resnet18", "layers": layers}


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
    "layers that match nothing": (lambda: fuse("resnet18", layers="block"), "matches 'block'"),
    "ResNet as a mobile model": (
        lambda: mobile_supernet("resnet18", kernel=(3, 5)),
        "'resnet18' is a ResNet; .* Use fuse",
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
        "EfficientNet or MobileNetV3, got ResNet",
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


def test_classifier_cannot_be_reset():
    with pytest.raises(RuntimeError, match="give num_classes where you make the supernet"):
        copy.deepcopy(built("MBConv")).reset_classifier(3)


def test_arguments_without_an_importable_name_cannot_be_described():
    supernet = mobile_supernet(
        SMALL_ARCH_DEF, skip=True, model_class=MobileNetV3, num_classes=3, num_features=16
    )
    assert build(supernet.describe(supernet.base)).num_classes == 3

    class Local(nn.ReLU):
        pass

    with pytest.raises(ValueError, match=r"act_layer is .*Local.* imported by name"):
        mobile_supernet(SMALL_ARCH_DEF, skip=True, act_layer=Local)


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
