"""Subnets with int8 weights: errors, sizes, and one search over sizes and bits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("torchao")
pytest.importorskip("transformers")
pytest.importorskip("timm")

from transformers import AutoModelForCausalLM, TorchAoConfig

from nas_dynamic.adapters.elastic.quantised import QuantisedSupernet, count_bytes
from nas_dynamic.adapters.timm import elastic_vit
from nas_dynamic.adapters.transformers import elastic_lm
from nas_dynamic.search import Objective, search, search_supernet
from tests.timm.vit.models import images, tiny
from tests.transformers.models import gpt2, llama, qwen2, tokens

pytestmark = pytest.mark.host

CHOICES = {"depth": [1, 2, 3], "width": [16, 48], "ffn": [24, 96], "per_layer": True}


def of_llama(**choices):
    return QuantisedSupernet(elastic_lm(llama(), **choices or CHOICES)).eval()


def random_subnets(quantised, number):
    generator = np.random.default_rng(0)
    return [quantised.space.sample(generator) for _ in range(number)]


def int8_by_hand(weight):
    """Round each row to 255 steps between minus and plus its greatest magnitude."""
    rows = []
    for row in weight:
        step = row.abs().max() / 127.5
        rows.append((row * (1 / step)).round().clamp(-128, 127) * step)
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-12, 12), st.booleans())
def test_the_error_of_a_weight_is_half_a_step_of_its_channel(seed, exponent, spread):
    generator = torch.Generator().manual_seed(seed)
    model = llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.normal_(std=2.0**exponent, generator=generator)
        if spread:  # channels of very different sizes
            weight.mul_(torch.logspace(-3, 3, len(weight))[:, None])
    quantised = QuantisedSupernet(elastic_lm(model, depth=[1, 3]))
    subnet = quantised.extract({"depth": 1, "bits1": 8, "bits2": None, "bits3": None})
    error = (subnet.model.layers[0].mlp.up_proj.weight.dequantize() - weight).abs().amax(1)
    half_step = weight.abs().amax(1) / 255
    least = torch.finfo(torch.float32).eps / 2  # torchao's steps are no smaller than ε
    assert (error <= half_step.clamp(min=least) * (1 + 1e-3)).all()
    assert (error >= half_step / 10)[half_step > least].all()


def test_chosen_layers_are_int8_and_no_others():
    quantised = of_llama()
    for architecture in random_subnets(quantised, 10):
        subnet = quantised.extract(architecture)
        full = quantised.supernet.extract(
            {label: architecture[label] for label in quantised.supernet.space.labels}
        )
        for number, layer in enumerate(full.model.layers):
            for module in layer.modules():
                if isinstance(module, nn.Linear) and architecture[f"bits{number + 1}"] == 8:
                    module.weight.data = int8_by_hand(module.weight.data)
        torch.testing.assert_close(subnet(tokens()).logits, full(tokens()).logits)
        quantised.activate(architecture)
        assert torch.equal(quantised(tokens()).logits, subnet(tokens()).logits)


def test_without_bits_it_is_the_supernet_to_the_bit():
    quantised = of_llama()
    for architecture in random_subnets(quantised, 5):
        quantised.activate(architecture | dict.fromkeys(("bits1", "bits2", "bits3")))
        quantised.supernet.activate(
            {label: architecture[label] for label in quantised.supernet.space.labels}
        )
        assert torch.equal(quantised(tokens()).logits, quantised.supernet(tokens()).logits)


def test_bytes_by_hand():
    """Heads of 8: 6 of queries, 3 of keys and values; 96 features; a vocabulary of 61."""
    quantised = of_llama(depth=[1, 3])
    outside = 4 * (2 * 61 * 48 + 48)
    norms = 4 * 2 * 48
    weights = 2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 96
    channels = 48 + 24 + 24 + 48 + 96 + 96 + 48
    full, int8 = norms + 4 * weights, norms + weights + (4 + 1) * channels
    size, number = quantised.subnet_bytes(), quantised.subnet_parameters()
    mixed = {"depth": 3, "bits1": 8, "bits2": None, "bits3": 8}
    assert size(mixed) == outside + full + 2 * int8
    assert size(mixed | {"depth": 1}) == outside + int8
    assert size(quantised.base) == 4 * number(quantised.base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_layer", [True, False])
def test_tables_of_bytes_are_exact(dtype, per_layer):
    of_images = elastic_vit(tiny(), depth=[2, 3], embed_dim=[24, 48], mlp_ratio=[1.5, 4])
    for supernet in (elastic_lm(qwen2(), **CHOICES), of_images):
        quantised = QuantisedSupernet(supernet.to(dtype), per_layer=per_layer)
        size, number = quantised.subnet_bytes(), quantised.subnet_parameters()
        for architecture in random_subnets(quantised, 6):
            subnet = quantised.extract(architecture)
            assert size(architecture) == count_bytes(subnet)
            assert number(architecture) == sum(p.numel() for p in subnet.parameters())


def test_transformers_loads_the_policy_and_what_it_wrote(tmp_path):
    quantised = of_llama()
    policy = quantised.base | {"bits1": 8, "bits3": 8}
    subnet = quantised.extract(policy)
    quantised.supernet.extract(quantised.supernet.base).save_pretrained(tmp_path / "full")
    config = TorchAoConfig(quantised.policy(policy))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=config)
    assert torch.equal(loaded(tokens()).logits, subnet(tokens()).logits)
    loaded.save_pretrained(tmp_path / "int8")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert torch.equal(again(tokens()).logits, subnet(tokens()).logits)
    assert count_bytes(again) == quantised.subnet_bytes()(policy)
    torch.save(subnet.state_dict(), tmp_path / "state.pt")
    plain = quantised.supernet.extract(quantised.supernet.base)
    plain.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), assign=True)
    assert torch.equal(plain(tokens()).logits, subnet(tokens()).logits)


def test_one_search_over_sizes_and_bits_finds_the_front():
    quantised = of_llama(depth=[1, 2, 3])
    logits = quantised.supernet(tokens()).logits
    size = quantised.subnet_bytes()

    def score(architectures):
        for architecture in architectures:
            quantised.activate(architecture)
            error = (quantised(tokens()).logits - logits).abs().mean()
            yield {"error": error.item()}

    found = search(
        quantised.space,
        score,
        [Objective("error"), Objective("bytes")],
        budget=quantised.space.size,
        measures={"bytes": size},
    )
    assert len(found.evaluations) == 3 * 2**3
    by_bytes = sorted(found.pareto, key=lambda e: e.values["bytes"])
    assert by_bytes[0].values["bytes"] == size(
        dict.fromkeys(quantised.space.labels, 8) | {"depth": 1}
    )
    assert by_bytes[-1].architecture == quantised.base
    assert by_bytes[-1].values["error"] == 0
    whole_int8 = dict.fromkeys(quantised.space.labels, 8) | {"depth": 3}
    assert whole_int8 in [e.architecture for e in found.pareto]


def test_search_supernet_takes_it():
    supernet = elastic_vit(tiny(), depth=[2, 3], embed_dim=[24, 48])
    quantised = QuantisedSupernet(supernet)
    batches = [(images(8), torch.arange(8) % 5)]
    options = {"batch_norm": "running", "budget": 12}
    measures = {"bytes": quantised.subnet_bytes()}
    limit = 0.5 * measures["bytes"](quantised.base)
    found = search_supernet(
        quantised, batches, measures=measures, at_most={"bytes": limit}, **options
    )
    assert all(e.values["bytes"] <= limit for e in found.evaluations)
    quantised.activate(found.best.architecture)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(quantised.eval()(batches[0][0]), batches[0][1])
    assert found.best.values["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_copy_follows_the_device_and_new_weights():
    quantised = of_llama()
    quantised(tokens())
    twin = copy.deepcopy(quantised).to(torch.float64)
    assert twin(tokens()).logits.dtype is torch.float64
    before = quantised(tokens()).logits
    with torch.no_grad():
        for parameter in quantised.supernet.parameters():
            parameter.mul_(1.1)
    assert torch.equal(quantised(tokens()).logits, before)
    quantised.activate(quantised.architecture)
    assert torch.equal(quantised(tokens()).logits, quantised.supernet(tokens()).logits)


def test_what_is_refused():
    supernet = elastic_lm(llama(), depth=[1, 3])
    with pytest.raises(ValueError, match="bits 4 is neither 8 nor None"):
        QuantisedSupernet(supernet, bits=[4, 8])
    with pytest.raises(TypeError, match="and this is a LlamaForCausalLM"):
        QuantisedSupernet(llama())
    with pytest.raises(TypeError, match=r"no nn.Linear.* such as a Llama"):
        QuantisedSupernet(elastic_lm(gpt2(), depth=[1, 3]))
    quantised = QuantisedSupernet(supernet)
    with pytest.raises(RuntimeError, match="train the supernet that this was made from"):
        quantised.train()(tokens())
    for refuse in (quantised.activate, quantised.extract, quantised.policy):
        with pytest.raises(ValueError, match="4 is not a candidate of 'bits2'"):
            refuse(quantised.base | {"bits2": 4})
    assert QuantisedSupernet(supernet, bits=[8]).base["bits1"] == 8
