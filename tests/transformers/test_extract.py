"""Subnets that are taken out of an elastic language model, saved, and loaded again."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments

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


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_in_bfloat16(name, tmp_path):
    """As from_pretrained loads them: rotary embeddings stay in float32."""
    MODELS[name]().to(torch.bfloat16).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    supernet = elastic_lm(model, **LAYERWISE)
    for number, architecture in enumerate(random_subnets(supernet, 2)):
        supernet.activate(architecture)
        supernet.extract(architecture).save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / str(number), trust_remote_code=True, dtype="auto"
        )
        assert loaded.dtype is torch.bfloat16
        assert torch.equal(loaded(tokens()).logits, supernet(tokens()).logits)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_rotary_embeddings_that_change_with_the_length(kind, tmp_path):
    rotary = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rotary |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    if kind != "dynamic":
        rotary["original_max_position_embeddings"] = 16
    supernet = elastic_lm(llama(max_position_embeddings=16, rope_parameters=rotary), depth=[1, 3])
    short, long = tokens(), tokens(length=40)
    supernet.activate({"depth": 1})
    logits = [supernet(ids).logits for ids in (short, long)]
    # What it saw last must not be in the subnet.
    subnet = supernet.extract({"depth": 1})
    subnet.save_pretrained(tmp_path)
    for model in (subnet, AutoModelForCausalLM.from_pretrained(tmp_path)):
        for ids, expected in zip((short, long), logits, strict=True):
            assert torch.equal(model(ids).logits, expected)
        assert torch.equal(model(short).logits, logits[0])


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_attentions_of_the_active_layers(name):
    model, ids = MODELS[name](), tokens()
    model.set_attn_implementation("eager")
    supernet = elastic_lm(model, **PLAIN[name])
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        wanted = {"output_hidden_states": True, "output_attentions": True}
        own, subnet = supernet(ids, **wanted), supernet.extract(architecture)(ids, **wanted)
        assert len(own.hidden_states) == architecture["depth"] + 1
        for one, other in zip(own.hidden_states, subnet.hidden_states, strict=True):
            assert torch.equal(one, other)
        for one, other in zip(own.attentions, subnet.attentions, strict=True):
            assert torch.equal(one, other)


def test_generation_by_beams_and_with_a_static_cache():
    supernet = elastic_lm(llama(), **SIZES)
    ways = {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}
    for architecture in random_subnets(supernet, 2):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        for options in ways:
            settings = {"max_new_tokens": 8, "do_sample": False, **options}
            own = supernet.generate(tokens(), **settings)
            assert torch.equal(subnet.generate(tokens(), **settings), own)


def test_a_compiled_supernet_computes_the_active_subnet():
    supernet = elastic_lm(llama(), **LAYERWISE)
    compiled = torch.compile(supernet, backend="eager")
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        with torch.no_grad():
            assert torch.equal(compiled(tokens()).logits, supernet(tokens()).logits)


def test_what_is_frozen_stays_frozen():
    model = llama(tie_word_embeddings=True)
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].mlp.requires_grad_(False)
    supernet = elastic_lm(model, **SIZES)
    with torch.inference_mode():
        subnet = supernet.extract(random_subnets(supernet, 1)[0])
    frozen = {name for name, weight in subnet.named_parameters() if not weight.requires_grad}
    mlp = {f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert frozen == {"model.embed_tokens.weight"} | mlp


def test_a_model_that_was_trained_in_mixed_precision(tmp_path):
    model, ids = llama(), tokens(batch=4)
    settings = TrainingArguments(
        tmp_path, max_steps=1, bf16=True, use_cpu=True, report_to=[], disable_tqdm=True
    )
    examples = [{"input_ids": tokens_, "labels": tokens_} for tokens_ in ids]
    Trainer(model, settings, train_dataset=examples).train()
    supernet = elastic_lm(model.eval(), **SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(supernet(ids).logits, model(ids).logits.to(torch.bfloat16))
    for architecture in random_subnets(supernet, 2):
        supernet.activate(architecture)
        assert torch.equal(supernet.extract(architecture)(ids).logits, supernet(ids).logits)


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
