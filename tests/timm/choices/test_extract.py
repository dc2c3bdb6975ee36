"""Subnets that are taken out of a layer-choice supernet, and built again."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from nas_dynamic.adapters.timm import build, fuse, mobile_supernet
from tests.timm.choices.supernets import BUILDERS, SMALL_ARCH_DEF, built, images
from tests.timm.loop import random_subnets

pytestmark = pytest.mark.host

DOCS = Path(__file__).parents[3] / "docs"


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


def test_a_uib_subnet_is_described_by_its_arch_def():
    supernet = built("MobileNetV4")
    architecture = supernet.base | {
        "blocks.0.0": "k5_e2",
        "blocks.1.1": "a0_k0_e4",
        "blocks.1.2": "skip",
        "blocks.2.0": "a0_k5_e2",
        "blocks.2.2": "a5_k0_e4",
    }
    arch_def = [
        ["er_r1_k5_s2_e2_c16"],
        ["uir_r1_a3_k5_s2_e4_c24", "uir_r1_a0_k0_s1_e4_c24"],
        [
            *("uir_r1_a0_k5_s2_e2_c32", "mqa_r1_k3_h2_s1_v2_d16_c32"),
            *("uir_r1_a5_k0_s1_e4_c32", "uir_r1_a3_k0_s1_e4_c32"),
        ],
        ["cn_r1_k1_s2_c48"],
    ]
    described = supernet.describe(architecture)["model"]["with"]
    assert described["block_args"] == decode_arch_def(arch_def)
    model = MobileNetV3(
        decode_arch_def(arch_def),
        num_classes=10,
        stem_size=8,
        num_features=32,
        head_norm=True,
        layer_scale_init_value=1e-5,
    ).eval()
    model.load_state_dict(supernet.extract(architecture).state_dict())
    supernet = copy.deepcopy(supernet)
    supernet.activate(architecture)
    x = images("MobileNetV4")
    with torch.no_grad():
        assert torch.equal(model(x), supernet(x))


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


def test_arguments_without_an_importable_name_cannot_be_described():
    supernet = mobile_supernet(
        SMALL_ARCH_DEF, skip=True, model_class=MobileNetV3, num_classes=3, num_features=16
    )
    assert build(supernet.describe(supernet.base)).num_classes == 3

    class Local(nn.ReLU):
        pass

    with pytest.raises(ValueError, match=r"act_layer is .*Local.* imported by name"):
        mobile_supernet(SMALL_ARCH_DEF, skip=True, act_layer=Local)
