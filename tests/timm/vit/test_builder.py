"""Which vision transformers are sliced, and which requests are refused."""

from __future__ import annotations

import json
from functools import partial

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention, LayerNorm
from torch import nn

from nas_dynamic.adapters.timm import elastic_vit
from nas_dynamic.adapters.timm.vit.builder import constructor_arguments, mlp_ratio_of
from nas_dynamic.complexity import count_parameters
from tests.timm.loop import random_subnets
from tests.timm.vit.models import SIZES, images, tiny

pytestmark = pytest.mark.host

VARIANTS = {
    "norms everywhere": {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    "layer scale, registers, average": {
        "init_values": 0.1,
        "reg_tokens": 2,
        "class_token": False,
        "global_pool": "avg",
    },
    "RMS norm with an epsilon": {"norm_layer": partial(timm.layers.RmsNorm, eps=1e-3)},
    "norm of torch": {"norm_layer": partial(nn.LayerNorm, eps=1e-2)},
    "norms ahead": {"pre_norm": True, "embed_norm_layer": LayerNorm, "no_embed_class": True},
    "few biases": {"qkv_bias": False, "proj_bias": False},
    "GELU of torch": {"act_layer": partial(nn.GELU, approximate="tanh")},
    "features only": {"num_classes": 0, "pos_embed": "none", "act_layer": "gelu_tanh"},
    "oblong": {"img_size": (8, 16), "patch_size": (2, 4), "in_chans": 1, "final_norm": False},
}


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_the_constructor(arguments):
    model = tiny(**arguments)
    supernet = elastic_vit(model, **SIZES)
    x = torch.randn(2, model.in_chans, *model.patch_embed.img_size)
    assert torch.equal(supernet(x), model(x))
    parameters = supernet.subnet_parameters()
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert torch.equal(subnet(x), supernet(x))
        assert parameters(architecture) == count_parameters(subnet)


def test_every_vision_transformer_of_timm_is_sliced_or_refused():
    kinds, refused = {}, 0
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
    for name in timm.list_models(module="vision_transformer"):
        model = timm.create_model(name, **sizes, device="meta")
        try:
            arguments = constructor_arguments(model)
        except TypeError:
            refused += 1
            continue
        kind = {k: v for k, v in arguments.items() if k not in ("img_size", "patch_size")}
        kinds.setdefault(json.dumps(kind), name)
    assert len(kinds) > 10
    assert refused < 60
    for name in kinds.values():
        model = timm.create_model(name, img_size=56, patch_size=14, **sizes).eval()
        supernet = elastic_vit(model, depth=[1, 2], embed_dim=[24, 32], heads=[2, 4])
        x = images(batch=1, size=56)
        assert torch.equal(supernet(x), model(x)), name
        (architecture,) = random_subnets(supernet, 1)
        supernet.activate(architecture)
        assert torch.equal(supernet(x), supernet.extract(architecture)(x)), name


@given(st.integers(1, 4096), st.integers(1, 16384))
@settings(max_examples=300)
def test_mlp_ratio_gives_back_the_hidden_features(embed_dim, hidden):
    assert int(embed_dim * mlp_ratio_of(embed_dim, hidden)) == hidden


def test_a_rounded_ratio_is_the_models_own():
    supernet = elastic_vit(tiny(mlp_ratio=8 / 3), mlp_ratio=[2, 2.667], per_layer=False)
    assert supernet.architecture == {"mlp_ratio": 2.667}
    assert supernet.blocks[0].mlp.fc1.weight.shape == (128, 48)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"depth": [2, 3, 4]}, "depth 4 is not an integer from 1 to 3.*greater depth"),
        ({"depth": [0, 3]}, "depth 0 is not"),
        ({"depth": [2.0, 3]}, "depth 2.0 is not an integer"),
        ({"embed_dim": [48, 96]}, "embed_dim 96 is not an integer from 1 to 48"),
        ({"embed_dim": [40, 48]}, "40 does not divide into heads of width 12; take 36, or give"),
        ({"embed_dim": [6, 48]}, "6 does not divide into heads of width 12; take 12"),
        ({"heads": [4, 5]}, "heads 5 is not an integer from 1 to 4"),
        ({"heads": [1, 2]}, "leave out the model's own 4: the largest subnet is the model. Add it"),
        ({"mlp_ratio": [4, 6]}, "mlp_ratio 6 makes 288 hidden features, of 192 in the model"),
        ({"mlp_ratio": [0.01, 4]}, "mlp_ratio 0.01 makes 0 hidden features"),
        ({"mlp_ratio": [2, 3]}, "leave out the model's own 4.0"),
        ({"attention": ["softmax", "cosine"]}, "'cosine' is unknown; choose from softmax, linear"),
        ({"attention": ["linear"]}, "leave out the model's own 'softmax'"),
        ({"depth": [3], "img_size": 32}, "img_size.*constructed already"),
        ({}, "at least one choice"),
    ],
)
def test_illegal_requests(choices, message):
    with pytest.raises(ValueError, match=message):
        elastic_vit(tiny(), **choices)


def test_models_that_cannot_be_sliced():
    with pytest.raises(TypeError, match="the model is a ResNet, which cannot be sliced"):
        elastic_vit("resnet18", depth=[1])
    with pytest.raises(TypeError, match=r"attn_pool is a AttentionPoolLatent.*global_pool='avg'"):
        elastic_vit(tiny(global_pool="map", class_token=False), depth=[2, 3])
    gated = tiny()
    gated.blocks[1].attn = Attention(48, num_heads=4, qkv_bias=True, gated=True)
    with pytest.raises(TypeError, match=r"blocks.1.attn.gate.weight is \(48, 48\) in the model"):
        elastic_vit(gated, depth=[2, 3])
    quick, rough = tiny(), tiny()
    quick.blocks[1].mlp.act = nn.ReLU()
    with pytest.raises(TypeError, match=r"blocks.1.mlp.act is relu in the model and gelu in one"):
        elastic_vit(quick, depth=[2, 3])
    rough.blocks[2].norm2.eps = 0.1
    with pytest.raises(TypeError, match=r"blocks.2.norm2 is 0.1 in the model and 1e-06 in one"):
        elastic_vit(rough, depth=[2, 3])
    uneven = elastic_vit(tiny(), heads=[2, 4])
    uneven = uneven.extract(uneven.architecture | {"heads2": 2})
    with pytest.raises(ValueError, match=r"the blocks differ in .* \(2, 24, 192\), \(4, 48, 192\)"):
        elastic_vit(uneven, depth=[2, 3])


def test_architectures_and_checkpoints_of_another_space():
    supernet = elastic_vit(tiny(), **SIZES)
    before = supernet.architecture
    for refuse in (supernet.activate, supernet.extract, supernet.describe):
        with pytest.raises(ValueError, match="9 is not a candidate of 'depth'"):
            refuse(before | {"depth": 9})
    assert supernet.architecture == before
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 65, 48\) in the .*filter_fn"):
        supernet.load_state_dict(tiny(img_size=32).state_dict())
    with pytest.raises(RuntimeError, match="num_classes where you make the supernet"):
        supernet.reset_classifier(3)
    with pytest.raises(RuntimeError, match="before elastic_vit"):
        supernet.set_input_size((32, 32))
