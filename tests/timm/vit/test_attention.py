"""Linear attention."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from torch import nn

from nas_dynamic.adapters.timm.vit.attention import LinearAttention

pytestmark = pytest.mark.host


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
