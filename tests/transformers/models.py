"""Small language models, and spaces of them."""

from __future__ import annotations

import numpy as np
import torch
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

VOCABULARY = 61
ENDLESS = {"bos_token_id": None, "eos_token_id": None}


def rotary(config_class, model_class, **changes):
    """A model of three layers with six heads of width 8, of which two share a key and value."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 64,
    }
    return randomised(model_class(config_class(**sizes | ENDLESS | changes)))


def llama(**changes):
    return rotary(LlamaConfig, LlamaForCausalLM, **changes)


def qwen2(**changes):
    return rotary(Qwen2Config, Qwen2ForCausalLM, **{"tie_word_embeddings": True} | changes)


def qwen3(**changes):
    """Its heads are wider than the hidden states divide into."""
    return rotary(Qwen3Config, Qwen3ForCausalLM, **{"head_dim": 12} | changes)


def gpt2(**changes):
    sizes = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
    return randomised(GPT2LMHeadModel(GPT2Config(**sizes | {"n_inner": 96} | ENDLESS | changes)))


def randomised(model):
    """Give a model weights that are all random, biases and norms among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


MODELS = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3, "gpt2": gpt2}
SIZES = {"depth": [1, 2, 3], "width": [16, 32, 48], "ffn": [24, 64, 96]}
PLAIN = {
    "llama": SIZES,
    "qwen2": SIZES | {"heads": [2, 4, 6]},
    "qwen3": SIZES | {"heads": [2, 4, 6]},
    "gpt2": SIZES,
}
"""Spaces all of whose subnets a plain configuration can say."""
LAYERWISE = SIZES | {"heads": [2, 4, 6], "attention": ["softmax", "linear"], "per_layer": True}


def tokens(batch=2, length=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def random_subnets(supernet, number, seed=0):
    generator = np.random.default_rng(seed)
    return [supernet.space.sample(generator) for _ in range(number)]


def generated(model, prompt, length=8):
    return model.generate(prompt, max_new_tokens=length, do_sample=False)
