from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
import timeit
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention, LayerNorm
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import cross_entropy

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.adapters.timm import BlockTable, attach, elastic_vit
from nas_dynamic.adapters.timm.recipe import build
from nas_dynamic.adapters.timm.vit.attention import LinearAttention
from nas_dynamic.adapters.timm.vit.builder import constructor_arguments, mlp_ratio_of
from nas_dynamic.complexity import bounds, count_macs, count_parameters, measure_latency
from tests.timm.loop import random_subnets

SIZES = {
    "depth": [2, 3],
    "embed_dim": [24, 36, 48],
    "heads": [1, 4],
    "mlp_ratio": [1.5, 4],
    "attention": ["softmax", "linear"],
}
SPACES = {
    "uniform": {
        "depth": [1, 2, 3],
        "embed_dim": [12, 24, 36, 48],
        "mlp_ratio": [1.5, 4],
        "per_layer": False,
    },
    "per layer": {k: SIZES[k] for k in ("depth", "embed_dim", "heads", "mlp_ratio")},
    "mixed attention": SIZES,
}


def tiny(**arguments):
    """A model of four heads of width 12, all of whose weights are random."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4}
    model = VisionTransformer(**sizes | {"num_classes": 5} | arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def images(batch=3, size=16):
    return torch.randn(batch, 3, size, size)


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
    text = (Path(__file__).parents[2] / "docs/timm_vit.md").read_text()
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


def test_a_copy_has_an_active_subnet_of_its_own():
    supernet, x = elastic_vit(tiny(), **SIZES), images()
    one, other = random_subnets(supernet, 2)
    supernet.activate(one)
    ema = copy.deepcopy(supernet)
    ema.activate(other)
    assert supernet.architecture == one
    assert torch.equal(supernet(x), supernet.extract(one)(x))
    assert torch.equal(ema(x), supernet.extract(other)(x))


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


@pytest.mark.parametrize(
    ("choices", "count"),
    [
        *((choices, 20) for choices in SPACES.values()),
        ({"embed_dim": [24, 48]}, 2),
        ({"attention": ["linear", "softmax"], "per_layer": False}, 2),
        ({"mlp_ratio": [1, 4]}, 4),
    ],
)
def test_tables_equal_direct_counts(choices, count):
    supernet = elastic_vit(tiny(), **choices)
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs()
    image = torch.zeros(1, 3, 16, 16, device="meta")
    for architecture in random_subnets(supernet, count):
        subnet = supernet.extract(architecture)
        assert parameters(architecture) == count_parameters(subnet)
        assert macs(architecture) == count_macs(subnet.to("meta"), image)
    least, greatest = bounds(supernet.space, parameters)
    assert greatest == count_parameters(supernet)
    assert least <= min(map(parameters, random_subnets(supernet, 200, seed=1)))


def test_macs_for_another_image_size():
    model = tiny(dynamic_img_size=True)
    supernet = elastic_vit(model, embed_dim=[24, 48], attention=["softmax", "linear"])
    (architecture,) = random_subnets(supernet, 1)
    subnet, x = supernet.extract(architecture), images(batch=1, size=24)
    supernet.activate(architecture)
    assert torch.equal(supernet(x), subnet(x))
    assert supernet.subnet_macs(24)(architecture) == supernet.subnet_macs((24, 24))(architecture)
    assert supernet.subnet_macs((24, 24))(architecture) == count_macs(
        subnet.to("meta"), x.to("meta")
    )


def test_linear_attention_costs_less_for_many_tokens():
    supernet = elastic_vit(tiny(img_size=64), attention=["softmax", "linear"], per_layer=False)
    macs = supernet.subnet_macs()
    tokens, head_dim = 64 // 4 * 64 // 4 + 1, 12
    layers_heads = 3 * 4
    softmax = layers_heads * 2 * tokens**2 * head_dim
    linear = layers_heads * tokens * (2 * head_dim**2 + head_dim)
    assert macs({"attention": "softmax"}) - macs({"attention": "linear"}) == softmax - linear


def test_latency_by_a_table():
    supernet = elastic_vit(tiny(), depth=[1, 3], per_layer=False)
    x = images(batch=8)
    for _ in range(5):  # on a busy machine a measurement may be far off
        latency = supernet.subnet_latency(x, seconds=0.05)
        if latency({"depth": 3}) > latency({"depth": 1}) > 0:
            break
    else:
        pytest.fail("three blocks never took longer than one")

    def measured(architecture):
        return measure_latency(supernet.extract(architecture), x, seconds=0.01)

    # How large the error is depends on what else the machine does.
    errors = latency.errors(supernet.space, measured, samples=4)
    assert errors.shape == (4,)
    assert (errors > -1).all()


def test_latency_in_half_precision():
    supernet = elastic_vit(tiny(), depth=[1, 3], per_layer=False).bfloat16()
    latency = supernet.subnet_latency(images().bfloat16(), seconds=0.01)
    assert latency({"depth": 1}) > 0


@pytest.mark.parametrize("choices", [*SPACES.values(), {"depth": [1, 3]}, {"embed_dim": [24, 48]}])
def test_saved_tables_are_the_same(choices, tmp_path):
    supernet = elastic_vit(tiny(), **choices)
    table = supernet.subnet_parameters()
    table.save(tmp_path / "table.json")
    loaded = type(table).load(tmp_path / "table.json")
    assert repr(loaded) == repr(table)
    assert not loaded.errors(supernet.space, table).any()
    architecture = supernet.architecture
    label = next(iter(architecture))
    with pytest.raises(ValueError, match=f"99 is not a candidate of '{label}'"):
        loaded(architecture | {label: 99})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"choices": 3}'])
def test_other_files_are_no_tables(content, tmp_path):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(ValueError, match=r"table\.json is no table that BlockTable\.save wrote"):
        BlockTable.load(tmp_path / "table.json")


def test_look_up_takes_microseconds_and_refuses_strangers():
    supernet = elastic_vit(tiny(depth=16), **SIZES | {"depth": [8, 16]})
    parameters = supernet.subnet_parameters()
    architecture = supernet.architecture
    seconds = min(timeit.repeat(lambda: parameters(architecture), number=2000, repeat=5)) / 2000
    assert seconds < 10e-6
    with pytest.raises(ValueError, match="7 is not a candidate of 'heads3'"):
        parameters(architecture | {"heads3": 7})


def test_linear_attention_is_normalised_kernel_attention():
    attention = LinearAttention(24, num_heads=2, attn_head_dim=5, qkv_bias=True)
    assert attention.state_dict().keys() == Attention(24, 2, qkv_bias=True).state_dict().keys()
    x = torch.randn(2, 7, 24)
    q, k, v = attention.qkv(x).reshape(2, 7, 3, 2, 5).permute(2, 0, 3, 1, 4)
    kernel = (nn.functional.elu(q) + 1) @ (nn.functional.elu(k) + 1).transpose(-2, -1)
    weights = kernel / kernel.sum(-1, keepdim=True)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 7, 10))
    torch.testing.assert_close(attention(x), expected)
    with pytest.raises(ValueError, match="takes no mask"):
        attention(x, is_causal=True)


@pytest.mark.parametrize("scale", [1e-3, 1, 60])
def test_linear_attention_stays_finite(scale):
    attention = LinearAttention(16, num_heads=2)
    x = torch.randn(1, 300, 16) * scale
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            output = attention(x - 20 * scale)
        output.sum().backward()
        assert torch.isfinite(output).all()
        assert all(torch.isfinite(p.grad).all() for p in attention.parameters() if p.requires_grad)


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


@pytest.mark.host
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
        by_hand.zero_grad()
        cross_entropy(by_hand(x), y).backward()
        for parameter in by_hand.parameters():
            if parameter.grad is None and idle == "coast":
                parameter.grad = torch.zeros_like(parameter)
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
