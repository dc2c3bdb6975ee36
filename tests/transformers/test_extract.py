"""Subnets that are taken out of an elastic language model, saved, and loaded again."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from nas_dynamic.adapters.transformers import elastic_lm
from tests.transformers.models import (
    LAYERWISE,
    MODELS,
    PLAIN,
    SIZES,
    generated,
    gpt2,
    llama,
    qwen2,
    qwen3,
    random_subnets,
    tokens,
)

pytestmark = pytest.mark.host


@pytest.mark.parametrize("name", MODELS)
def test_extracted_subnets_are_identical_through_save_pretrained(name, tmp_path):
    model = MODELS[name]()
    supernet, ids = elastic_lm(model, **PLAIN[name]), tokens()
    for number, architecture in enumerate(random_subnets(supernet, 20)):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert type(subnet) is type(model)
        logits, continued = supernet(ids).logits, generated(supernet, ids)
        assert torch.equal(subnet(ids).logits, logits)
        subnet.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        assert type(loaded) is type(model)
        assert torch.equal(loaded(ids).logits, logits)
        assert torch.equal(generated(loaded, ids), continued)


@pytest.mark.parametrize("name", MODELS)
def test_subnets_whose_layers_differ_are_identical(name, tmp_path):
    model = MODELS[name]()
    supernet, ids = elastic_lm(model, **LAYERWISE), tokens()
    classes = set()
    for number, architecture in enumerate(random_subnets(supernet, 6)):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        logits = supernet(ids).logits
        assert torch.equal(subnet(ids).logits, logits)
        subnet.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / str(number), trust_remote_code=True
        )
        assert torch.equal(loaded(ids).logits, logits)
        assert torch.equal(generated(loaded, ids), generated(supernet, ids))
        classes.add(type(loaded).__name__)
    assert f"Layerwise{type(model).__name__}" in classes


RELOAD = """
import sys
sys.modules["nas_dynamic"] = None
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code="layers" in folder)
    ids, logits = torch.load(folder + "/case.pt")
    assert torch.equal(model(ids).logits, logits)
"""


@pytest.mark.process
def test_transformers_alone_reload_a_subnet(tmp_path):
    folders = []
    cases = {"alike": (llama(), SIZES), "layers_llama": (llama(), LAYERWISE)}
    cases["layers_gpt2"] = (gpt2(), LAYERWISE)
    for case, (model, choices) in cases.items():
        supernet, ids = elastic_lm(model, **choices), tokens()
        (architecture,) = random_subnets(supernet, 1, seed=3)
        subnet = supernet.extract(architecture)
        subnet.save_pretrained(tmp_path / case)
        torch.save((ids, subnet(ids).logits), tmp_path / case / "case.pt")
        folders.append(str(tmp_path / case))
    # Else the modules of remote code are kept in the home of whoever runs the tests.
    subprocess.run([sys.executable, "-c", RELOAD, *folders], cwd=tmp_path, check=True)


def test_llama_wants_heads_that_divide_the_width(tmp_path):
    supernet = elastic_lm(llama(), width=[40, 48], heads=[4, 6])
    odd = supernet.extract({"width": 40, "heads": 6})
    assert type(odd).__name__ == "LayerwiseLlamaForCausalLM"
    odd.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    supernet.activate({"width": 40, "heads": 6})
    assert torch.equal(loaded(tokens()).logits, supernet(tokens()).logits)
    plain = supernet.extract({"width": 40, "heads": 4})
    assert type(plain) is LlamaForCausalLM
    assert plain.config.num_key_value_heads == 2
    assert plain.config.head_dim == 8


@pytest.mark.parametrize("name", MODELS)
def test_the_largest_subnet_is_the_model(name, tmp_path):
    model, ids = MODELS[name](), tokens()
    supernet = elastic_lm(model, **PLAIN[name])
    assert torch.equal(supernet(ids).logits, model(ids).logits)
    assert list(supernet.state_dict()) == list(model.state_dict())
    assert [n for n, _ in supernet.named_parameters()] == [n for n, _ in model.named_parameters()]
    supernet.activate(random_subnets(supernet, 1)[0])
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    supernet.load_state_dict(other.state_dict(), strict=True)
    supernet.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        type(model).__name__
    ]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(ids).logits, other(ids).logits)
    written = {"architectures": None, "dtype": None}
    assert supernet.config.to_dict() | written == model.config.to_dict() | written


def test_the_given_model_stays_as_it_is():
    model, ids = llama(), tokens()
    logits = model(ids).logits
    supernet = elastic_lm(model, **SIZES)
    supernet.activate(random_subnets(supernet, 1)[0])
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert type(model) is LlamaForCausalLM
    assert torch.equal(model(ids).logits, logits)


def test_extraction_copies_and_keeps_mode_dtype_and_active_subnet():
    supernet = elastic_lm(qwen2(), **SIZES).to(torch.bfloat16).train()
    one, other = random_subnets(supernet, 2)
    supernet.activate(one)
    random = torch.get_rng_state()
    subnet = supernet.extract(other)
    assert torch.equal(torch.get_rng_state(), random)
    assert supernet.architecture == one
    assert subnet.training
    assert subnet.dtype is torch.bfloat16
    assert subnet.lm_head.weight is subnet.model.embed_tokens.weight
    shared = {p.untyped_storage().data_ptr() for p in supernet.parameters()}
    assert not shared & {p.untyped_storage().data_ptr() for p in subnet.parameters()}
    supernet.eval().activate(other)
    assert torch.equal(subnet.eval()(tokens()).logits, supernet(tokens()).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_is_kept(implementation):
    model = qwen3()
    model.set_attn_implementation(implementation)
    supernet = elastic_lm(model, **PLAIN["qwen3"])
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert subnet.config._attn_implementation == implementation
        assert torch.equal(subnet(tokens()).logits, supernet(tokens()).logits)


VARIANTS = {
    "biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "tied": lambda: llama(tie_word_embeddings=True, hidden_act="gelu"),
    "scaled rotary": lambda: llama(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    ),
    "biases of Qwen": lambda: qwen3(attention_bias=True, tie_word_embeddings=True),
    "scaled by the layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "not tied": lambda: gpt2(tie_word_embeddings=False, reorder_and_upcast_attn=True),
}


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_the_configuration(make, tmp_path):
    model, ids = make(), tokens()
    supernet = elastic_lm(model, **SIZES | {"heads": [2, 6], "per_layer": True})
    parameters = supernet.subnet_parameters()
    assert torch.equal(supernet(ids).logits, model(ids).logits)
    for number, architecture in enumerate(random_subnets(supernet, 3)):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert subnet.num_parameters() == parameters(architecture)
        subnet.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / str(number), trust_remote_code=True
        )
        assert torch.equal(loaded(ids).logits, supernet(ids).logits)


def test_padding_and_masks():
    supernet, ids = elastic_lm(llama(), **SIZES), tokens()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        inputs = {"attention_mask": mask}
        assert torch.equal(subnet(ids, **inputs).logits, supernet(ids, **inputs).logits)


def test_one_key_and_value_head_for_all():
    supernet = elastic_lm(llama(num_key_value_heads=1), width=[16, 48], heads=[3, 6])
    for architecture in supernet.space:
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert torch.equal(subnet(tokens()).logits, supernet(tokens()).logits)


def test_copies_have_an_active_subnet_of_their_own():
    supernet = elastic_lm(gpt2(), **SIZES)
    one, other = random_subnets(supernet, 2)
    supernet.activate(one)
    twin = pickle.loads(pickle.dumps(supernet))
    logits = supernet(tokens()).logits
    assert torch.equal(twin(tokens()).logits, logits)
    supernet.activate(other)
    assert torch.equal(twin(tokens()).logits, logits)
