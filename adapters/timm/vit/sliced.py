"""Layers of timm that compute with the first entries of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import LayerNorm, LayerNormFp32, LayerScale, RmsNorm, RmsNormFp32
from torch import nn

from nas_dynamic.adapters.elastic.sliced import SlicedLinear, first_entries
from nas_dynamic.adapters.timm.vit.attention import ATTENTIONS
from nas_dynamic.adapters.timm.vit.space import BlockShape

__all__ = ["SLICED", "SlicedQKV", "resize_block", "resize_present"]


class SlicedQKV(SlicedLinear):
    """Fused queries, keys and values: the first rows of each of the three are active."""

    def _rows(self, parameter: torch.Tensor) -> torch.Tensor:
        each = parameter.unflatten(0, (3, -1))[:, : self.out_features // 3]
        return cast(torch.Tensor, each.flatten(0, 1))


class SlicedConv2d(nn.Conv2d):
    """A Conv2d whose first `out_channels` output channels are active."""

    def resize(self, out_channels: int) -> None:
        """Choose the active part."""
        self.out_channels = out_channels

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Active part of the weight."""
        return cast(torch.Tensor, first_entries(self, "weight", self.out_channels))

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """Active part of the bias."""
        return first_entries(self, "bias", self.out_channels)


class _SlicedNorm(nn.Module):
    normalized_shape: tuple[int, ...]

    def resize(self, width: int) -> None:
        """Choose the active part."""
        self.normalized_shape = (width,)

    @property
    def weight(self) -> torch.Tensor | None:
        """Active part of the weight."""
        return first_entries(self, "weight", self.normalized_shape[0])

    @property
    def bias(self) -> torch.Tensor | None:
        """Active part of the bias."""
        return first_entries(self, "bias", self.normalized_shape[0])


class _SlicedTorchLayerNorm(_SlicedNorm, nn.LayerNorm):  # type: ignore[misc]
    pass


class _SlicedLayerNorm(_SlicedNorm, LayerNorm):  # type: ignore[misc]
    pass


class _SlicedLayerNormFp32(_SlicedNorm, LayerNormFp32):  # type: ignore[misc]
    pass


class _SlicedRmsNorm(_SlicedNorm, RmsNorm):  # type: ignore[misc]
    pass


class _SlicedRmsNormFp32(_SlicedNorm, RmsNormFp32):  # type: ignore[misc]
    pass


class SlicedLayerScale(LayerScale):
    """A LayerScale whose first `width` channels are active."""

    width: int

    def resize(self, width: int) -> None:
        """Choose the active part."""
        self.width = width

    @property
    def gamma(self) -> torch.Tensor:  # type: ignore[override]
        """Active part of the scale."""
        return cast(torch.Tensor, first_entries(self, "gamma", self.width))


SLICED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SlicedLinear,
    nn.Conv2d: SlicedConv2d,
    nn.LayerNorm: _SlicedTorchLayerNorm,
    LayerNorm: _SlicedLayerNorm,
    LayerNormFp32: _SlicedLayerNormFp32,
    RmsNorm: _SlicedRmsNorm,
    RmsNormFp32: _SlicedRmsNormFp32,
    LayerScale: SlicedLayerScale,
}
"""Class of a layer → class of its sliced form. Each needs a `resize` before it computes."""


def resize_block(block: Any, embed_dim: int, shape: BlockShape) -> None:
    """Choose the active part of a block of sliced layers."""
    attn, mlp = block.attn, block.mlp
    attn.kind = ATTENTIONS[shape.attention]
    attn.num_heads = shape.heads
    attn.attn_dim = shape.heads * attn.head_dim
    attn.qkv.resize(embed_dim, 3 * attn.attn_dim)
    attn.proj.resize(attn.attn_dim, embed_dim)
    hidden = int(embed_dim * shape.mlp_ratio)
    mlp.fc1.resize(embed_dim, hidden)
    mlp.fc2.resize(hidden, embed_dim)
    resize_present([attn.q_norm, attn.k_norm], attn.head_dim)
    resize_present([attn.norm], attn.attn_dim)
    resize_present([mlp.norm], hidden)
    resize_present([block.norm1, block.ls1, block.norm2, block.ls2], embed_dim)


def resize_present(layers: Sequence[Any], width: int) -> None:
    """Choose the active part of the layers that are there."""
    for layer in layers:
        if not isinstance(layer, nn.Identity):
            layer.resize(width)
