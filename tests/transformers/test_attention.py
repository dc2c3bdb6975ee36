"""Causal linear attention beside softmax."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from nas_dynamic.adapters.elastic.space import ATTENTIONS
from nas_dynamic.adapters.transformers import elastic_lm
from nas_dynamic.adapters.transformers.lm import modeling_layerwise
from nas_dynamic.adapters.transformers.lm.modeling_layerwise import causal_linear_attention
from tests.transformers.models import (
    LAYERWISE,
    MODELS,
    SIZES,
    generated,
    gpt2,
    llama,
    random_subnets,
    tokens,
)

pytestmark = pytest.mark.host

KINDS = {"attention": ["softmax", "linear"]}


def random_heads(tokens_, heads=4, groups=2, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens_)
    shapes = [(2, heads, tokens_, width)] + 2 * [(2, heads // groups, tokens_, width)]
    module = nn.Module()
    module.num_key_value_groups = groups
    return module, *(torch.randn(s, generator=generator, dtype=dtype) for s in shapes)


def by_pairs(module, query, key, value, counts):
    """Each token's mean over the pairs that count, one after the other."""
    output = torch.zeros(*query.shape[:3], value.shape[-1], dtype=value.dtype)
    for sequence, head, i in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        shared = head // module.num_key_value_groups
        q, total = F.elu(query[sequence, head, i]) + 1, 0.0
        for j in range(key.shape[2]):
            if counts[sequence, 0, i, j]:
                weight = q @ (F.elu(key[sequence, shared, j]) + 1)
                output[sequence, head, i] += weight * value[sequence, shared, j]
                total += weight
        if total:
            output[sequence, head, i] /= total
    return output.transpose(1, 2)


@pytest.mark.parametrize("length", [1, 5, 64, 65, 131])
def test_it_is_a_mean_over_pairs(length):
    module, query, key, value = random_heads(length)
    causal = torch.ones(2, 1, length, length).tril().bool()
    output, weights = causal_linear_attention(module, query, key, value, None, scaling=0.5)
    assert weights is None
    torch.testing.assert_close(output, by_pairs(module, query, key, value, causal))


@pytest.mark.parametrize("additive", [True, False])
def test_masks_say_which_pairs_count(additive):
    module, query, key, value = random_heads(9)
    counts = torch.ones(2, 1, 9, 9).tril().bool()
    counts[0, :, :, :3] = False  # padding: the first three tokens attend to none
    mask = counts
    if additive:
        mask = torch.zeros(2, 1, 9, 12).masked_fill(~F.pad(counts, (0, 3)), -3e38)
    output, _ = causal_linear_attention(module, query, key, value, mask)
    torch.testing.assert_close(output, by_pairs(module, query, key, value, counts))
    last, _ = causal_linear_attention(module, query[:, :, -1:], key, value, mask[:, :, -1:])
    torch.testing.assert_close(last, output[:, -1:])


@pytest.mark.parametrize("length", [2, 66])
def test_keys_beyond_the_queries_are_of_an_empty_cache(length):
    module, query, key, value = random_heads(140)
    output, _ = causal_linear_attention(module, query[:, :, :length], key, value, None)
    whole, _ = causal_linear_attention(module, query, key, value, None)
    torch.testing.assert_close(output, whole[:, :length])


def test_the_last_token_sees_what_all_tokens_see_in_vision():
    pytest.importorskip("timm")
    from nas_dynamic.adapters.timm.vit.attention import LinearAttention

    vision = LinearAttention(24, num_heads=4).double()
    x = torch.randn(2, 70, 24, dtype=torch.float64)
    q, k, v = vision.qkv(x).reshape(2, 70, 3, 4, 6).permute(2, 0, 3, 1, 4)
    causal, _ = causal_linear_attention(vision, q, k, v, None)
    torch.testing.assert_close(vision.proj(causal.flatten(2))[:, -1], vision(x)[:, -1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 60.0])
def test_it_stays_finite(dtype, scale):
    module, *heads = random_heads(300, dtype=torch.float32)
    query, key, value = ((scale * (x - 20)).to(dtype).detach().requires_grad_() for x in heads)
    padded = torch.ones(2, 1, 300, 300).tril().bool()
    padded[..., :10] = False
    for mask in (None, padded):
        output, _ = causal_linear_attention(module, query, key, value, mask)
        assert output.dtype is dtype
        assert torch.isfinite(output).all()
        gradients = torch.autograd.grad(output.float().sum(), (query, key, value))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_a_later_token_changes_nothing_before(name, implementation):
    model = MODELS[name]()
    model.set_attn_implementation(implementation)
    supernet = elastic_lm(model, **KINDS)
    supernet.activate({"attention": "linear"})
    ids = tokens()
    changed = ids.clone()
    changed[:, 6:] = (ids[:, 6:] + 7) % 61
    one, other = supernet(ids).logits, supernet(changed).logits
    assert torch.equal(one[:, :6], other[:, :6])
    assert not torch.isclose(one[:, 6:], other[:, 6:]).all(-1).any()
    supernet.activate({"attention": "softmax"})
    assert torch.equal(supernet(ids).logits, model(ids).logits)
    assert not torch.isclose(supernet(ids).logits, one)[:, 1:].all(-1).any()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_subnets_generate_the_same_when_extracted_with_and_without_a_cache(
    name, implementation, tmp_path
):
    model = MODELS[name]()
    model.set_attn_implementation(implementation)
    supernet = elastic_lm(model, **LAYERWISE)
    mask = torch.ones_like(tokens())
    mask[0, :4] = 0
    for number, architecture in enumerate(random_subnets(supernet, 3)):
        linear = architecture | {"attention1": "linear"}
        supernet.activate(linear)
        supernet.extract(linear).save_pretrained(tmp_path / str(number))
        subnet = AutoModelForCausalLM.from_pretrained(
            tmp_path / str(number), trust_remote_code=True, attn_implementation=implementation
        )
        assert subnet.config.layer_attention[0] == "linear"
        for options in ({}, {"attention_mask": mask}):
            assert torch.equal(
                subnet(tokens(), **options).logits, supernet(tokens(), **options).logits
            )
            settings = {"max_new_tokens": 12, "do_sample": False, **options}
            expected = supernet.generate(tokens(), **settings)
            assert torch.equal(subnet.generate(tokens(), **settings), expected)
            assert torch.equal(subnet.generate(tokens(), use_cache=False, **settings), expected)
    static = subnet.generate(tokens(), max_new_tokens=12, cache_implementation="static")
    assert torch.equal(static, generated(subnet, tokens(), 12))


def test_its_cost_grows_linearly_with_the_tokens():
    model = llama(max_position_embeddings=512)
    supernet = elastic_lm(model, **KINDS)
    few, many = supernet.subnet_macs(128), supernet.subnet_macs(512)
    assert many({"attention": "linear"}) == 4 * few({"attention": "linear"})
    assert many({"attention": "softmax"}) > 4 * few({"attention": "softmax"})
    # Six heads of 8 in three layers: pairs inside of a chunk, and a sum before it; each with ones.
    of_a_head = 128 * (64 * (8 + 9) + 2 * 8 * 9)
    attention = 3 * 6 * of_a_head
    projections = 3 * 128 * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 96) + 128 * 48 * 61
    assert few({"attention": "linear"}) == attention + projections


def test_both_learn():
    supernet = elastic_lm(gpt2(), **SIZES, **KINDS).train()
    optimizer = torch.optim.Adam(supernet.parameters(), lr=3e-3)
    for kind in ATTENTIONS:
        losses = []
        supernet.activate(supernet.base | {"attention": kind})
        for _ in range(15):
            loss = supernet(tokens(), labels=tokens()).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]


def test_what_is_refused():
    assert tuple(modeling_layerwise.ATTENTIONS) == ATTENTIONS
    with pytest.raises(ValueError, match="attention 'cosine' is unknown; choose from softmax, lin"):
        elastic_lm(llama(), attention=["softmax", "cosine"])
    with pytest.raises(ValueError, match="leave out the model's own 'softmax'"):
        elastic_lm(llama(), attention=["linear"])
    module, *heads = random_heads(5)
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        causal_linear_attention(module, *heads, torch.ones(2, 5))
    supernet = elastic_lm(llama(), **KINDS)
    supernet.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="not of flash_attention_2: load the model with attn_im"):
        supernet.activate({"attention": "linear"})
