"""Language models whose layers differ in heads and in the width of their feed-forward part.

`save_pretrained` copies this file beside the weights, and transformers runs it from there:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

So it imports torch and transformers and nothing else. The configuration is that of the plain class
and lists with a number for each layer: `layer_heads`, query heads; `layer_key_value_heads`, unless
it is a GPT-2, where there are as many; `layer_ffn`, hidden features. A head is `head_dim` wide. The
numbers of the plain class, such as `num_attention_heads`, are then of no layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
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
    "LayerwiseGPT2Config",
    "LayerwiseGPT2LMHeadModel",
    "LayerwiseLlamaConfig",
    "LayerwiseLlamaForCausalLM",
    "LayerwiseQwen2Config",
    "LayerwiseQwen2ForCausalLM",
    "LayerwiseQwen3Config",
    "LayerwiseQwen3ForCausalLM",
]


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
