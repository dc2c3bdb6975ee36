"""Subnets that are taken out of an elastic vision transformer, and built again."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer

from nas_dynamic.adapters.timm import elastic_vit
from nas_dynamic.adapters.timm.recipe import build
from tests.timm.loop import random_subnets
from tests.timm.vit.models import SIZES, SPACES, images, tiny

pytestmark = pytest.mark.host


@pytest.mark.parametrize("choices", SPACES.values(), ids=SPACES)
def test_extracted_subnets_are_identical(choices):
    supernet = elastic_vit(tiny(), **choices)
    for architecture in random_subnets(supernet, 24):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert type(subnet) is VisionTransformer
        for x in (images(), images(batch=1)):
            assert torch.equal(subnet(x), supernet(x))
        rebuilt = build(json.loads(json.dumps(supernet.describe(architecture))))
        rebuilt.load_state_dict(subnet.state_dict(), strict=True)
        assert torch.equal(rebuilt.eval()(x), supernet(x))


def test_uniform_subnets_need_plain_arguments_only():
    supernet = elastic_vit(tiny(), **SPACES["uniform"])
    for architecture in supernet.space:
        arguments = supernet.describe(architecture)["model"]["with"]
        subnet = VisionTransformer(**json.loads(json.dumps(arguments)))
        subnet.load_state_dict(supernet.extract(architecture).state_dict(), strict=True)


RUN_DOCUMENTED_SCRIPT = """
import os, sys
sys.modules["nas_dynamic"] = None
import torch
script = open("rebuild.py").read()
for case in sys.argv[1:]:
    os.chdir(case)
    exec(script)
    x, expected = torch.load("case.pt")
    assert torch.equal(model.eval()(x), expected)
"""


@pytest.mark.process
def test_documented_script_rebuilds_without_this_package(tmp_path):
    text = (Path(__file__).parents[3] / "docs/timm_vit.md").read_text()
    (script,) = re.findall(r"```python\n(# rebuild\.py.*?)```", text, re.DOTALL)
    (tmp_path / "rebuild.py").write_text(script)
    epsilon = elastic_vit(tiny(norm_layer=partial(LayerNorm, eps=1e-4)), embed_dim=[36, 48])
    supernets = [epsilon, *(elastic_vit(tiny(), **SPACES[k]) for k in ("uniform", "per layer"))]
    folders = []
    for i, supernet in enumerate(supernets):
        (architecture,) = random_subnets(supernet, 1, seed=3)
        subnet, x = supernet.extract(architecture), images()
        folders.append(tmp_path / str(i))
        folders[-1].mkdir()
        (folders[-1] / "subnet.json").write_text(json.dumps(supernet.describe(architecture)))
        torch.save(subnet.state_dict(), folders[-1] / "subnet.pt")
        torch.save((x, subnet(x)), folders[-1] / "case.pt")
    command = [sys.executable, "-c", RUN_DOCUMENTED_SCRIPT, *folders]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_weights_of_the_timm_model_load_and_make_the_largest_subnet():
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4).eval()
    supernet = elastic_vit(
        "vit_tiny_patch16_224", img_size=32, num_classes=4, depth=[8, 12], heads=[2, 3]
    ).eval()
    assert supernet.architecture == {"depth": 12} | {f"heads{i}": 3 for i in range(1, 13)}
    supernet.activate(supernet.architecture | {"depth": 8})
    supernet.load_state_dict(source.state_dict(), strict=True)
    supernet.activate(supernet.architecture | {"depth": 12})
    x = images(size=32)
    assert torch.equal(supernet(x), source(x))
    assert list(supernet.state_dict()) == list(source.state_dict())
    subnet = supernet.extract(supernet.architecture)
    assert subnet.pretrained_cfg == source.pretrained_cfg
    for name, weight in subnet.state_dict().items():
        assert torch.equal(weight, source.state_dict()[name])


def test_the_given_model_stays_as_it_is():
    model, x = tiny(), images()
    expected, weights = model(x), copy.deepcopy(model.state_dict())
    supernet = elastic_vit(model, **SIZES)
    supernet.activate(random_subnets(supernet, 1)[0])
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert type(model) is VisionTransformer
    assert torch.equal(model(x), expected)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_extraction_copies_and_keeps_mode_dtype_and_active_subnet():
    supernet = elastic_vit(tiny(), **SIZES).double().train()
    one, other = random_subnets(supernet, 2)
    supernet.activate(one)
    subnet = supernet.extract(other, drop_path_rate=0.2)
    assert supernet.architecture == one
    assert subnet.training
    assert subnet.head.weight.dtype == torch.float64
    assert subnet.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    shared = {p.untyped_storage().data_ptr() for p in supernet.parameters()}
    assert not shared & {p.untyped_storage().data_ptr() for p in subnet.parameters()}
    supernet.eval()
    x = images().double()
    before = supernet(x)
    supernet.extract(other)
    assert torch.equal(supernet(x), before)


@pytest.mark.parametrize("choices", SPACES.values(), ids=SPACES)
def test_onnx_export_of_a_subnet(choices, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported model")
    supernet, x = elastic_vit(tiny(), **choices), images()
    (architecture,) = random_subnets(supernet, 1)
    architecture |= {"depth": 2}
    if "attention" in choices:
        architecture |= {"attention1": "softmax", "attention2": "linear"}
    subnet = supernet.extract(architecture)
    torch.onnx.export(subnet, (x,), tmp_path / "subnet.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "subnet.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), subnet(x), rtol=1e-4, atol=1e-4)


def test_what_is_frozen_stays_frozen():
    model = tiny()
    model.blocks[0].requires_grad_(False)
    subnet = elastic_vit(model, depth=[2, 3]).extract({"depth": 2})
    frozen = {name for name, weight in subnet.named_parameters() if not weight.requires_grad}
    assert frozen == {f"blocks.0.{name}" for name, _ in subnet.blocks[0].named_parameters()}
