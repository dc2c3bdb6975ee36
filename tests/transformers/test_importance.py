"""Heads and hidden features in the order of what they weigh."""

from __future__ import annotations

import operator

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from nas_dynamic.adapters.transformers import elastic_lm, sort_by_importance
from nas_dynamic.adapters.transformers.lm.families import family_of
from tests.transformers.models import MODELS, llama, tokens

pytestmark = pytest.mark.host


def importances(model, ids):
    """Means of what the projections read, by hand: of features |x|, of heads the norm."""
    family, config, found = family_of(model), model.config, []

    def heads(module, inputs):
        width = family.head_dim(config)
        parts = inputs[0].split(width, dim=-1)
        found.append([float(part.norm(dim=-1).mean()) for part in parts])

    def features(module, inputs):
        found.append(inputs[0].abs().mean((0, 1)).tolist())

    hooks = []
    for layer in operator.attrgetter(family.layers)(model):
        attention, ffn = family.outputs(layer)
        hooks.append(attention.register_forward_pre_hook(heads))
        hooks.append(ffn.register_forward_pre_hook(features))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found[::2], found[1::2]


@pytest.mark.parametrize("name", MODELS)
def test_sorting_changes_the_order_and_nothing_else(name):
    model, ids = MODELS[name]().double(), tokens(batch=4)
    before = {n: w.clone() for n, w in model.state_dict().items()}
    ordered = sort_by_importance(model, ids.split(2))
    torch.testing.assert_close(ordered(ids).logits, model(ids).logits)
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
    group = model.config.num_attention_heads // family_of(model).key_value_heads(model.config)
    for own, sorted_ in zip(*(importances(m, ids) for m in (model, ordered)), strict=True):
        for mine, theirs in zip(own, sorted_, strict=True):
            assert sorted(mine) == pytest.approx(sorted(theirs))
    heads, features = importances(ordered, ids)
    for layer in features:
        assert layer == sorted(layer, reverse=True)
    for layer in heads:
        groups = [sum(layer[i : i + group]) for i in range(0, len(layer), group)]
        assert groups == pytest.approx(sorted(groups, reverse=True))
        for i in range(0, len(layer), group):
            assert layer[i : i + group] == sorted(layer[i : i + group], reverse=True)


def test_subnets_keep_what_matters():
    """Half of the features, and all but the last group of heads, do nothing."""
    model, ids = llama(), tokens()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:48] = 0
            layer.self_attn.v_proj.weight[:16] = 0
    plain = elastic_lm(model, ffn=[48, 96], heads=[2, 6])
    ordered = elastic_lm(sort_by_importance(model, [ids]), ffn=[48, 96], heads=[2, 6])
    small = {"ffn": 48, "heads": 2}
    plain.activate(small)
    ordered.activate(small)
    torch.testing.assert_close(ordered(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert (plain(ids).logits - model(ids).logits).abs().max() > 1


def test_what_cannot_be_sorted():
    with pytest.raises(ValueError, match="no batch"):
        sort_by_importance(llama(), [])
    with pytest.raises(TypeError, match=r"is a BertForMaskedLM"):
        sort_by_importance(
            BertForMaskedLM(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)),
            [tokens()],
        )
