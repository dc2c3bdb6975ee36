"""The MobileNet space of the paper: 21 searched layers, 7 operations each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.models._efficientnet_builder import round_channels
from torch import nn

from nas_dynamic.adapters.timm import LayerChoiceSupernet, mobile_supernet

# (channels, layers) of each stage. Operations: kernel 3, 5, 7 × expansion 3, 6, and skip where
# it can be.
STAGES = [(32, 4), (40, 4), (80, 4), (96, 4), (192, 4), (320, 1)]


def make_supernet(
    classes: int, width: float, strides: Sequence[int], aligned: bool
) -> LayerChoiceSupernet:
    """Make the supernet, with channels multiplied by `width` and a stride for each stage."""
    arch_def = [["ds_r1_k3_s1_e1_c16"]]
    for (channels, layers), stride in zip(STAGES, strides, strict=True):
        arch_def.append([f"ir_r{layers}_k3_s{stride}_e6_c{channels}"])
    supernet = mobile_supernet(
        arch_def,
        kernel=(3, 5, 7),
        expansion=(3, 6),
        skip=True,
        num_classes=classes,
        round_chs_fn=partial(round_channels, multiplier=width),
        num_features=round_channels(1280, width),
    )
    if aligned:
        align(supernet)
    return supernet


def align(supernet: LayerChoiceSupernet) -> None:
    """Start all candidates of a layer alike, and residual layers as the identity.

    Subnets then compute similar features from the first update on, which short trainings need:
    with independent candidates the small preset has learnt nothing after 500 updates.
    """
    largest = supernet.space.largest(supernet.subnet_parameters())
    model = supernet.extract(largest)
    for module in model.modules():
        if getattr(module, "has_skip", False) and hasattr(module, "bn3"):
            nn.init.zeros_(module.bn3.weight)
    supernet.inherit(model, largest, crop=True)
