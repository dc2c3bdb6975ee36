"""Language models whose layers differ in heads, in feed-forward width, and in their attention.

`save_pretrained` copies this file beside the weights, and transformers runs it from there:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

So it imports torch and transformers and nothing else. The configuration is that of the plain class
and lists with a number for each layer: `layer_heads`, query heads; `layer_key_value_heads`, unless
it is a GPT-2, where there are as many; `layer_ffn`, hidden features; and, where some layer is not
softmax, `layer_attention`, a key of `ATTENTIONS` for each. A head is `head_dim` wide. The numbers
of the plain class, such as `num_attention_heads`, are then of no layer.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

__all__ = [
    "ATTENTIONS",
    "LayerwiseGPT2Config",
    "LayerwiseGPT2LMHeadModel",
    "LayerwiseLlamaConfig",
    "LayerwiseLlamaForCausalLM",
    "LayerwiseQwen2Config",
    "LayerwiseQwen2ForCausalLM",
    "LayerwiseQwen3Config",
    "LayerwiseQwen3ForCausalLM",
    "causal_linear_attention",
    "set_attention",
]

ATTENTIONS = {"softmax": None, "linear": "causal_linear"}
"""Attention of a layer → name of its implementation; None for that of the model."""

MASKED = ("eager", "sdpa", None)
"""Attention of a model, beside which a layer can be linear: its masks are read. None: not set."""

CHUNK = 64
"""Tokens whose pairs are formed at a time, in linear attention."""


def causal_linear_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return for each token a mean of the values up to it, weighted by φ(q)·φ(k); φ = elu + 1.

    Without a mask its cost grows linearly with the tokens. With one, of padding or of eager
    attention, pairs of all tokens are formed. It has no weights that dropout could act on.

    Args:
        module: the attention, for its `num_key_value_groups`.
        query: (sequences, heads, tokens, width), with rotary embeddings if the model has any.
        key: (sequences, key and value heads, tokens so far, width).
        value: of the shape of `key`.
        attention_mask: (sequences, 1, tokens, tokens so far or more): True, or 0, where a pair
            counts. None: queries are of the first tokens, and keys beyond them are those of an
            empty cache, as in sdpa; or the one query is the last token.

    Returns:
        (sequences, tokens, heads, width), and None in place of the weights.

    Raises:
        ValueError: the mask is of another attention than eager and sdpa.

    Source: Katharopoulos et al., "Transformers are RNNs", ICML 2020, arXiv 2006.16236.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    precise = torch.promote_types(value.dtype, torch.float32)  # sums leave the range of float16
    query = _positive(query.to(precise))
    key = _positive(key.to(precise)).repeat_interleave(groups, dim=1)
    # A column of ones sums up the weights, by the same products as the values.
    ones = value.new_ones((*value.shape[:-1], 1), dtype=precise)
    summed = torch.cat([value.to(precise), ones], dim=-1).repeat_interleave(groups, dim=1)
    if attention_mask is not None:
        if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 4:
            raise ValueError(
                "linear attention takes the masks of eager and sdpa attention: load the model with "
                "attn_implementation='sdpa'"
            )
        mask = attention_mask[..., : key.shape[-2]]
        counts = mask if mask.dtype is torch.bool else mask >= 0
        total = (query @ key.transpose(-2, -1) * counts) @ summed
    elif query.shape[-2] == 1:
        total = (query @ key.transpose(-2, -1)) @ summed
    else:
        tokens = query.shape[-2]
        total = _causal(query, key[..., :tokens, :], summed[..., :tokens, :])
    weights = total[..., -1:]
    # A token of padding may attend to none.
    weights = weights.masked_fill(weights < torch.finfo(precise).tiny, 1.0)
    return (total[..., :-1] / weights).to(value.dtype).transpose(1, 2).contiguous(), None


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return Σ_{j ≤ i} (q_i · k_j) v_j, chunk by chunk: pairs inside of one, a sum before it."""
    before = value.new_zeros((*key.shape[:-2], key.shape[-1], value.shape[-1]))
    totals = []
    for q, k, v in zip(*(x.split(CHUNK, dim=-2) for x in (query, key, value)), strict=True):
        totals.append((q @ k.transpose(-2, -1)).tril() @ v + q @ before)
        before = before + k.transpose(-2, -1) @ v
    return torch.cat(totals, dim=-2)


def _positive(x: torch.Tensor) -> torch.Tensor:
    # elu(x) + 1 without its rounding: exp(x) - 1 + 1 is 0 from about x = -17 in float32.
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


AttentionInterface.register("causal_linear", causal_linear_attention)


def set_attention(attention: Any, kind: str, config: Any) -> None:
    """Choose the attention of one layer.

    Args:
        attention: the module.
        kind: a key of `ATTENTIONS`.
        config: of the model, whose implementation softmax follows.

    Raises:
        ValueError: linear attention in a model of another implementation than eager and sdpa.
    """
    implementation = ATTENTIONS[kind]
    if implementation is not None:
        if config._attn_implementation not in MASKED:
            raise ValueError(
                f"linear attention takes the masks of eager and sdpa attention, not of "
                f"{config._attn_implementation}: load the model with attn_implementation='sdpa'"
            )
        config = copy.copy(config)
        config._attn_implementation = implementation
    attention.config = config


class LayerwiseLlamaConfig(LlamaConfig):
    """A LlamaConfig with `layer_heads`, `layer_key_value_heads` and `layer_ffn`."""

    model_type = "layerwise_llama"


class LayerwiseQwen2Config(Qwen2Config):
    """A Qwen2Config with `layer_heads`, `layer_key_value_heads` and `layer_ffn`."""

    model_type = "layerwise_qwen2"


class LayerwiseQwen3Config(Qwen3Config):
    """A Qwen3Config with `layer_heads`, `layer_key_value_heads` and `layer_ffn`."""

    model_type = "layerwise_qwen3"


class LayerwiseGPT2Config(GPT2Config):
    """A GPT2Config with `layer_heads`, `layer_ffn` and `head_dim`."""

    model_type = "layerwise_gpt2"


class LayerwiseLlamaForCausalLM(LlamaForCausalLM):
    """A LlamaForCausalLM whose layers differ."""

    config: LayerwiseLlamaConfig
    config_class = LayerwiseLlamaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _resize_rotary(self.model.layers, config)
        self.post_init()


class LayerwiseQwen2ForCausalLM(Qwen2ForCausalLM):
    """A Qwen2ForCausalLM whose layers differ."""

    config: LayerwiseQwen2Config
    config_class = LayerwiseQwen2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _resize_rotary(self.model.layers, config)
        self.post_init()


class LayerwiseQwen3ForCausalLM(Qwen3ForCausalLM):
    """A Qwen3ForCausalLM whose layers differ."""

    config: LayerwiseQwen3Config
    config_class = LayerwiseQwen3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _resize_rotary(self.model.layers, config)
        self.post_init()


class LayerwiseGPT2LMHeadModel(GPT2LMHeadModel):
    """A GPT2LMHeadModel whose layers differ."""

    config: LayerwiseGPT2Config
    config_class = LayerwiseGPT2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        blocks: Any = self.transformer.h
        for block, heads, ffn in zip(blocks, config.layer_heads, config.layer_ffn, strict=True):
            features = heads * config.head_dim
            block.attn.c_attn = Conv1D(3 * features, width)
            block.attn.c_proj = Conv1D(width, features)
            block.attn.num_heads, block.attn.split_size = heads, features
            block.mlp.c_fc, block.mlp.c_proj = Conv1D(ffn, width), Conv1D(width, ffn)
        _set_attentions([block.attn for block in blocks], config)
        self.post_init()


def _resize_rotary(layers: Any, config: Any) -> None:
    """Give the layers of a model with rotary embeddings their own sizes."""
    width = config.hidden_size
    numbers = (config.layer_heads, config.layer_key_value_heads, config.layer_ffn)
    for layer, heads, key_value_heads, ffn in zip(layers, *numbers, strict=True):
        attn, mlp = layer.self_attn, layer.mlp
        queries, keys = heads * config.head_dim, key_value_heads * config.head_dim
        attn.num_key_value_groups = heads // key_value_heads
        attn.q_proj = _like(attn.q_proj, width, queries)
        attn.k_proj = _like(attn.k_proj, width, keys)
        attn.v_proj = _like(attn.v_proj, width, keys)
        attn.o_proj = _like(attn.o_proj, queries, width)
        mlp.gate_proj = _like(mlp.gate_proj, width, ffn)
        mlp.up_proj = _like(mlp.up_proj, width, ffn)
        mlp.down_proj = _like(mlp.down_proj, ffn, width)
    _set_attentions([layer.self_attn for layer in layers], config)


def _set_attentions(attentions: Any, config: Any) -> None:
    kinds = getattr(config, "layer_attention", None) or ["softmax"] * len(attentions)
    for attention, kind in zip(attentions, kinds, strict=True):
        set_attention(attention, kind, config)


def _like(linear: nn.Linear, in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=linear.bias is not None)


for _config, _model in (
    (LayerwiseLlamaConfig, LayerwiseLlamaForCausalLM),
    (LayerwiseQwen2Config, LayerwiseQwen2ForCausalLM),
    (LayerwiseQwen3Config, LayerwiseQwen3ForCausalLM),
    (LayerwiseGPT2Config, LayerwiseGPT2LMHeadModel),
):
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForCausalLM")
