"""Supernets of timm's feature extractors, which return feature maps of several sizes."""

from __future__ import annotations

import copy
import functools
import json
import pickle

import pytest
import timm
import torch
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.optim import create_optimizer_v2
from torch import nn

from nas_dynamic.adapters.timm import attach, build, elastic_vit, fuse, mobile_supernet
from nas_dynamic.complexity import count_macs, count_parameters
from tests.timm.choices.supernets import SMALL_ARCH_DEF, UIB_ARCH_DEF
from tests.timm.loop import random_subnets

pytestmark = pytest.mark.host

SIZE = 64
RESNET = {"model_name": "resnet14t", "layers": (1, 2, 2, 1), "channels": (8, 16, 24, 32)}


def resnet(feature_cls: str, **kwargs):
    se = RESNET | {"block_args": {"attn_layer": "se"}}
    models = {"plain": RESNET, "se": se}
    return fuse(models, skip=True, features_only=True, feature_cls=feature_cls, **kwargs)


BUILDERS = {
    "MobileNetV3Features": lambda: mobile_supernet(
        UIB_ARCH_DEF,
        kernel=(0, 3),
        start_kernel=(0, 5),
        skip=True,
        model_class=MobileNetV3Features,
        stem_size=8,
        out_indices=(1, 2, 3),
    ),
    "EfficientNetFeatures": lambda: fuse("efficientnet_lite0", skip=True, features_only=True),
    "FeatureListNet": lambda: resnet("list", out_indices=(1, 3)),
    "FeatureListNet-flattened": lambda: fuse(
        {
            "k7": {"model_name": "convnext_atto", "dims": (8, 16, 24, 32)},
            "k3": {"model_name": "convnext_atto", "dims": (8, 16, 24, 32), "kernel_sizes": 3},
        },
        skip=True,
        features_only=True,
        out_indices=(0, 2),
    ),
    "FeatureDictNet": lambda: resnet("dict"),
    "FeatureHookNet": lambda: resnet("hook", out_indices=(2, 4)),
    "FeatureGetterNet": lambda: resnet("getter", out_indices=(1, 2)),
    "FeatureGetterNet-ViT": lambda: fuse(
        {"wide": "test_vit", "narrow": {"model_name": "test_vit", "mlp_ratio": 2}},
        features_only=True,
        img_size=SIZE,
        out_indices=(1, 3),
    ),
    "FeatureGetterNet-elastic": lambda: elastic_vit(
        "test_vit",
        heads=[1, 2],
        mlp_ratio=[2, 3],
        features_only=True,
        img_size=SIZE,
        out_indices=(1, 3),
    ),
}


@functools.cache
def built(name):
    torch.manual_seed(0)
    supernet = BUILDERS[name]().eval()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return supernet


@pytest.fixture(params=BUILDERS)
def name(request):
    return request.param


@pytest.fixture
def supernet(name):
    return copy.deepcopy(built(name))


def images(count=2):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(model, x):
    """The feature maps, of extractors that return a list and of those that return a dict."""
    found = model(x)
    return [*found.values()] if isinstance(found, dict) else found


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_extracted_backbones_are_bit_identical(name, supernet):
    x = images()
    maps = []
    for architecture in random_subnets(supernet, 6):
        supernet.activate(architecture)
        model = supernet.extract(architecture)
        assert type(model).__name__ == name.partition("-")[0]
        assert isinstance(supernet, type(model))
        maps.append(features(model, x))
        assert equal(features(supernet, x), maps[-1])
        rebuilt = build(json.loads(json.dumps(supernet.describe(architecture)))).eval()
        rebuilt.load_state_dict(model.state_dict())
        assert equal(features(rebuilt, x), maps[-1])
    assert any(not equal(maps[0], other) for other in maps)


def test_tables_equal_direct_counts(supernet):
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs(SIZE)
    image = torch.zeros(1, 3, SIZE, SIZE, device="meta")
    for architecture in random_subnets(supernet, 6, seed=1):
        model = supernet.extract(architecture)
        assert parameters(architecture) == count_parameters(model)
        assert macs(architecture) == count_macs(model.to("meta"), image)


def test_information_on_the_features_is_kept(supernet):
    (architecture,) = random_subnets(supernet, 1, seed=2)
    for model in (supernet, supernet.extract(architecture)):
        maps = features(model, images())
        assert [x.shape[1] for x in maps] == model.feature_info.channels()
        assert [SIZE // x.shape[-1] for x in maps] == model.feature_info.reduction()


def test_copies_compute_features_of_their_own_subnet(supernet):
    one, other = random_subnets(supernet, 2)
    supernet.activate(one)
    x = images()
    expected = features(supernet, x)
    for twin in (copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))):
        assert equal(features(twin, x), expected)
        twin.activate(other)
        assert equal(features(twin, x), features(supernet.extract(other), x))
    assert equal(features(supernet, x), expected)


def test_pretrained_weights_of_a_backbone_are_inherited():
    torch.manual_seed(1)
    donor = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2)).eval()
    models = {"plain": "test_resnet", "se": {"model_name": "test_resnet"}}
    models["se"]["block_args"] = {"attn_layer": "se"}
    supernet = fuse(models, features_only=True, out_indices=(1, 2)).eval()
    supernet.inherit(donor)
    assert equal(features(supernet, images()), features(donor, images()))


class Segmentation(nn.Module):
    """A backbone with a neck and a head of its own, such as a user has."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.necks = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in backbone.feature_info.channels())
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        maps = [neck(f) for neck, f in zip(self.necks, self.backbone(x), strict=True)]
        same = [nn.functional.interpolate(f, size=maps[0].shape[-2:]) for f in maps]
        return self.head(sum(same))


def trained(model, optimizer, before_update=lambda: None, steps=4):
    used = []
    for step in range(steps):
        before_update()
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(2, 3, SIZE, SIZE, generator=generator)
        optimizer.zero_grad()
        output = model(x)
        target = torch.randint(4, output[:, 0].shape, generator=generator)
        nn.functional.cross_entropy(output, target).backward()
        optimizer.step()
        used.append(model.backbone.sampled)
    return used


@pytest.mark.parametrize(
    "name", ["MobileNetV3Features", "FeatureListNet", "FeatureGetterNet-elastic"]
)
def test_a_backbone_trains_under_attach_in_a_model_of_ones_own(supernet):
    torch.manual_seed(0)
    model = Segmentation(supernet).train()
    twin = copy.deepcopy(model)
    options = {"opt": "sgd", "lr": 0.1, "momentum": 0.9}
    optimizer = create_optimizer_v2(model, **options)
    attached = attach(
        optimizer, model.backbone, total_steps=9, calr=False, momentum=False, idle="freeze"
    )
    with pytest.raises(TypeError, match=r"Segmentation is no supernet .* 'backbone' is one: give"):
        attach(optimizer, model)
    used = trained(model, optimizer)
    assert attached.training.updates == 4
    assert len({tuple(architecture.items()) for architecture in used}) > 1

    drawn = iter(used)
    own = create_optimizer_v2(twin, **options)
    assert trained(twin, own, lambda: twin.backbone.activate(next(drawn))) == [None] * 4
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_backbone_trains_with_calr_and_separate_momentum():
    backbone = copy.deepcopy(built("MobileNetV3Features"))
    model = Segmentation(backbone).train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9)
    attached = attach(optimizer, backbone, total_steps=4, group_by="blocks.1.1")
    used = trained(model, optimizer)
    assert set(attached.training.groups) == {subnet["blocks.1.1"] for subnet in used}
    last = attached.training.last
    assert last.architecture == used[-1]
    assert last.factor == (attached.training.calr.factor(used[-1], 3),)


ILLEGAL = {
    "layers that are counted": (
        lambda: fuse("test_vit", skip=["model.blocks.2"], features_only=True),
        r"'model\.blocks\.2' cannot be left out: it is of the layers by whose number timm finds",
    ),
    "layers that are counted by hooks": (
        lambda: fuse(
            "test_vit",
            skip=["body.blocks.2"],
            features_only=True,
            feature_cls="hook",
            out_indices=(1, 4),
        ),
        r"'body\.blocks\.2' cannot be left out: it is of the layers by whose number timm finds",
    ),
    "nothing but layers that are counted": (
        lambda: fuse("test_vit", skip=True, features_only=True),
        r"nothing to choose.*'model\.blocks\.\d' is of the layers by whose number timm finds",
    ),
    "features from inside of layers": (
        lambda: mobile_supernet(
            SMALL_ARCH_DEF,
            kernel=(3, 5),
            model_class=timm.models.efficientnet.EfficientNetFeatures,
            feature_location="expansion",
            out_indices=(1, 2),
        ),
        r"'blocks\.1\.2' has a hook, .* feature_location='bottleneck'",
    ),
    "elastic depth": (
        lambda: elastic_vit("test_vit", depth=[4, 6], features_only=True),
        "depth cannot be elastic in a feature extractor: it would change the number of the feature",
    ),
    "elastic width": (
        lambda: elastic_vit("test_vit", embed_dim=[32, 64], features_only=True),
        "embed_dim cannot be elastic in a feature extractor: it would change the width",
    ),
    "a traced graph": (
        lambda: fuse("test_resnet", skip=True, features_only=True, feature_cls="fx"),
        "FeatureGraphNet computes a traced graph, .*: 'list', 'dict' or 'getter'",
    ),
    "a wrapper about a mobile model": (
        lambda: mobile_supernet(
            "mnasnet_050", kernel=(3, 5), features_only=True, feature_cls="getter"
        ),
        "'mnasnet_050' is a FeatureGetterNet around a EfficientNet, .* leave feature_cls .* out",
    ),
    "a built extractor": (
        lambda: fuse({"a": timm.create_model("test_resnet", features_only=True)}, skip=True),
        "FeatureListNet has no group_matcher that tells the paths of its layers; give layers=",
    ),
}


@pytest.mark.parametrize("request_", ILLEGAL)
def test_what_cannot_work_is_refused(request_):
    make, message = ILLEGAL[request_]
    with pytest.raises(ValueError, match=message):
        make()


def test_built_extractors_are_fused_by_their_layers():
    models = {
        name: timm.create_model(**arguments, features_only=True, out_indices=(1, 2))
        for name, arguments in {
            "plain": {"model_name": "test_resnet"},
            "se": {"model_name": "test_resnet", "block_args": {"attn_layer": "se"}},
        }.items()
    }
    supernet = fuse(models, layers=r"layer\d\.\d").eval()
    x = images()
    assert equal(features(supernet, x), features(models["plain"].eval(), x))
    for architecture in random_subnets(supernet, 4):
        supernet.activate(architecture)
        assert equal(features(supernet, x), features(supernet.extract(architecture), x))
