"""Sizes of subnets, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from nas_dynamic.adapters.elastic.table import BlockTable
from nas_dynamic.adapters.transformers import elastic_lm
from nas_dynamic.complexity import count_macs
from tests.transformers.models import (
    LAYERWISE,
    MODELS,
    PLAIN,
    gpt2,
    llama,
    qwen2,
    random_subnets,
    tokens,
)

pytestmark = pytest.mark.host


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tables_are_exact(name, per_layer, tmp_path):
    supernet = elastic_lm(MODELS[name](), **(LAYERWISE if per_layer else PLAIN[name]))
    parameters, macs = supernet.subnet_parameters(), supernet.subnet_macs(12)
    cached = supernet.subnet_kv_cache(10)
    parameters.save(tmp_path / "table.json")
    loaded = BlockTable.load(tmp_path / "table.json")
    for architecture in random_subnets(supernet, 6):
        subnet = supernet.extract(architecture)
        assert parameters(architecture) == sum(p.numel() for p in subnet.parameters())
        assert loaded(architecture) == parameters(architecture)
        cache = subnet(tokens(batch=1), use_cache=True).cache
        held = [tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values)]
        assert cached(architecture) == sum(held)
        assert macs(architecture) == count_macs(
            subnet.to("meta"), torch.zeros((1, 12), dtype=torch.long, device="meta")
        )


def test_macs_by_hand():
    """One layer of width 48, six heads of 8, three of them keys and values, 96 features."""
    supernet = elastic_lm(llama(), depth=[1, 3])
    supernet.config.use_cache = False  # as Trainer leaves it
    projections = 2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 96
    attention = 2 * 12 * 48
    assert supernet.subnet_macs(12)({"depth": 1}) == 12 * (projections + attention + 48 * 61)


def test_bytes_of_the_cache_by_dtype():
    supernet = elastic_lm(llama(), depth=[1, 3])
    assert supernet.subnet_kv_cache(100, torch.int8)({"depth": 3}) == 3 * 2 * 100 * 3 * 8
    assert supernet.subnet_kv_cache()({"depth": 1}) == 2 * 3 * 8 * 4


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"depth": [2, 3, 4]}, "depth 4 is not an integer from 1 to 3.*greater depth"),
        ({"width": [48, 96]}, "width 96 is not an integer from 1 to 48"),
        ({"width": [44, 48]}, "44 does not divide into heads of width 8; take 40, or give"),
        ({"width": [24, 48]}, "heads 3 is no multiple of 2, the query .*; take 2, a width of 16"),
        ({"heads": [3, 6]}, "heads 3 is no multiple of 2, the query heads of one key and value"),
        ({"heads": [2, 4]}, "leave out the model's own 6"),
        ({"ffn": [96, 128]}, "ffn 128 is not an integer from 1 to 96"),
        ({"ffn": [0.5, 96]}, "ffn 0.5 is not an integer"),
        ({}, "at least one choice"),
    ],
)
def test_illegal_requests(choices, message):
    with pytest.raises(ValueError, match=message):
        elastic_lm(llama(), **choices)


@pytest.mark.parametrize("choices", [{"depth": 3}, {"attention": "linear"}])
def test_candidates_are_a_list(choices):
    with pytest.raises(TypeError, match=r"(depth is 3|is 'linear'); give a list of candidates, \["):
        elastic_lm(llama(), **choices)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_not_tied_as_the_configuration_says(tied):
    model = llama(tie_word_embeddings=tied)
    embedding = model.model.embed_tokens.weight
    model.lm_head.weight = nn.Parameter(embedding.detach().clone()) if tied else embedding
    with pytest.raises(TypeError, match=r"lm_head.weight is .*tied to model.embed_tokens.weight"):
        elastic_lm(model, depth=[1, 3])


def test_what_gpt2_asks_for():
    with pytest.raises(ValueError, match=r"width 20 is no multiple of 8.*; take 16"):
        elastic_lm(gpt2(), width=[20, 48], heads=[2, 6])
    with pytest.raises(ValueError, match="cross attention"):
        elastic_lm(gpt2(add_cross_attention=True), depth=[1, 3])


class _Int8(torch.Tensor):
    pass


def test_models_that_cannot_be_sliced():
    bert = BertForMaskedLM(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(TypeError, match=r"is a BertForMaskedLM; .* LlamaForCausalLM, Qwen2"):
        elastic_lm(bert, depth=[1])
    windows = qwen2(use_sliding_window=True, max_window_layers=1)
    with pytest.raises(ValueError, match="have sliding_attention; only full attention"):
        elastic_lm(windows, depth=[1, 3])
    changed = llama()
    changed.model.layers[1].mlp.up_proj = nn.Linear(48, 96, bias=True)
    with pytest.raises(TypeError, match=r"layers.1.mlp.up_proj.bias is \(96,\) in the model and"):
        elastic_lm(changed, depth=[1, 3])
    changed = llama()
    changed.model.norm.weight = nn.Parameter(changed.model.norm.weight.data.as_subclass(_Int8))
    with pytest.raises(TypeError, match=r"norm.weight is _Int8 in the model .* quantisation"):
        elastic_lm(changed, depth=[1, 3])
    changed = llama()
    changed.model.layers[2].mlp.act_fn = nn.ReLU()
    with pytest.raises(TypeError, match=r"layers.2.mlp.act_fn is ReLU in the model and SiLU"):
        elastic_lm(changed, depth=[1, 3])


def test_architectures_of_another_space():
    supernet = elastic_lm(llama(), depth=[2, 3])
    for refuse in (supernet.activate, supernet.extract, supernet.configuration):
        with pytest.raises(ValueError, match="1 is not a candidate of 'depth'"):
            refuse({"depth": 1})
    assert supernet.architecture == {"depth": 3}
    with pytest.raises(RuntimeError, match="before elastic_lm"):
        supernet.resize_token_embeddings(70)
