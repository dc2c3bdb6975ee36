"""Blocks of a vision transformer whose heads, MLP and attention can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import nn

from nas_dynamic.adapters.timm.vit.builder import ATTENTIONS
from nas_dynamic.adapters.timm.vit.linear_attention import LinearAttention
from nas_dynamic.adapters.timm.vit.space import BlockShape

__all__ = ["ElasticAttention", "resize_block", "resize_present"]


class ElasticAttention(LinearAttention):
    """Either attention, on one set of parameters."""

    kind: type[Attention]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map tokens (batch, N, channels) to tokens of the same shape."""
        return self.kind.forward(self, x, *args, **kwargs)


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
