"""Attention of a layer: timm's softmax, linear, or either of them on one set of parameters."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import Attention

__all__ = ["ATTENTIONS", "ElasticAttention", "LinearAttention"]


class LinearAttention(Attention):
    """Multi-head attention whose cost grows linearly with the number of tokens N.

        out = φ(q) (φ(k)ᵀ v) / (φ(q) Σ φ(k)),    φ(x) = elu(x) + 1

    It has the parameters of timm's `Attention` and no others, so a layer may use either with the
    same weights. Per head of width d it takes 2·N·d² + N·d multiply-accumulates where softmax
    attention takes 2·N²·d. No attention weights are formed, so `attn_drop` has nothing to act on.

    Raises:
        ValueError: by the forward, where a mask is given: every token attends to all.

    Source: Katharopoulos et al., "Transformers are RNNs", ICML 2020, arXiv 2006.16236.
    """

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Map tokens (batch, N, channels) to tokens of the same shape."""
        if attn_mask is not None or is_causal:
            raise ValueError(
                "linear attention takes no mask; choose softmax attention in all layers"
            )
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = _positive(self.q_norm(q)), _positive(self.k_norm(k))
        k = k / tokens  # means instead of sums stay in the range of float16; the ratio is the same
        x = q @ (k.transpose(-2, -1) @ v)
        x = x / (q @ k.sum(-2).unsqueeze(-1))
        x = x.transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        return cast(torch.Tensor, self.proj_drop(self.proj(self.norm(x))))


ATTENTIONS: dict[str, type[Attention]] = {"softmax": Attention, "linear": LinearAttention}
"""Attention of a layer, by name. All have the same parameters."""


class ElasticAttention(LinearAttention):
    """Either attention, on one set of parameters."""

    kind: type[Attention]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map tokens (batch, N, channels) to tokens of the same shape."""
        return self.kind.forward(self, x, *args, **kwargs)


def _positive(x: torch.Tensor) -> torch.Tensor:
    # elu(x) + 1 without its rounding: exp(x) - 1 + 1 is 0 from about x = -17 in float32.
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())
