"""Supernets of several classes of timm models, with weights as after a training."""

from __future__ import annotations

import functools

import torch
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from nas_dynamic.adapters.timm import fuse, mobile_supernet

SMALL_ARCH_DEF = [
    ["ds_r1_k3_s1_e1_c8"],
    ["ir_r3_k3_s2_e3_c16_se0.25"],
    ["er_r2_k3_s2_e4_c24"],
    ["ir_r2_k5_s1_e6_c32_nhs"],
]

# All four kinds of UIB, edge residual and attention, as in the hybrid MobileNetV4.
UIB_ARCH_DEF = [
    ["er_r1_k3_s2_e4_c16"],
    ["uir_r1_a3_k5_s2_e4_c24", "uir_r1_a0_k3_s1_e2_c24", "uir_r1_a0_k0_s1_e2_c24"],
    ["uir_r1_a5_k5_s2_e4_c32", "mqa_r1_k3_h2_s1_v2_d16_c32", "uir_r2_a3_k0_s1_e4_c32"],
    ["cn_r1_k1_s2_c48"],
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
    "MobileNetV4": lambda: mobile_supernet(
        UIB_ARCH_DEF,
        start_kernel=(0, 3, 5),
        kernel=(0, 3, 5),
        expansion=(2, 4),
        skip=True,
        model_class=MobileNetV3,
        num_classes=10,
        stem_size=8,
        num_features=32,
        head_norm=True,
        layer_scale_init_value=1e-5,
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


def images(name, count=2):
    size = SIZE.get(name, 48)
    return torch.randn(count, 3, size, size)
