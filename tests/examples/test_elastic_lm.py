"""The example goes from pretraining to a subnet that generates, at a size of seconds."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    pipeline,
)

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]


def test_the_example_ends_in_a_model_for_transformers(monkeypatch, tmp_path, capsys):
    options = ["--preset", "smoke", "--data", str(ROOT / "README.md"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *options, "--threads", "1"])
    runpy.run_path(str(ROOT / "examples/elastic_lm/train.py"), run_name="__main__")
    result = json.loads((tmp_path / "result.json").read_text())
    subnet = AutoModelForCausalLM.from_pretrained(tmp_path / "subnet")
    assert type(subnet) is LlamaForCausalLM
    assert subnet.config.num_hidden_layers == result["found"]["depth"]
    assert subnet.config.intermediate_size == result["found"]["ffn"]
    printed = capsys.readouterr().out
    assert f"perplexity {result['perplexity']:.3f} a byte, {subnet.num_parameters():,}" in printed
    assert "ROMEO." in printed


def test_the_preset_for_a_gpu_is_scored_in_the_precision_of_its_training(
    monkeypatch, tmp_path, capsys
):
    options = ["--preset", "gpu", "--data", str(ROOT / "README.md"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *options, "--threads", "1", "--device", "cpu"])
    names = runpy.run_path(str(ROOT / "examples/elastic_lm/train.py"))
    preset, smoke = names["PRESETS"]["gpu"], names["PRESETS"]["smoke"]
    assert preset.bf16
    names["PRESETS"]["gpu"] = dataclasses.replace(smoke, bf16=True)
    names["main"]()
    result = json.loads((tmp_path / "result.json").read_text())
    assert f"perplexity {result['of the largest']:.3f} a byte" in capsys.readouterr().out
    subnet = AutoModelForCausalLM.from_pretrained(tmp_path / "subnet")
    assert subnet.dtype is torch.float32
    text = names["read_text"](ROOT / "README.md")[2]
    own, half = (
        names["perplexity"](subnet, text, dataclasses.replace(smoke, bf16=bf16))
        for bf16 in (False, True)
    )
    assert result["perplexity"] == half != own


def checkpoint(folder, config_class, model_class, **changes):
    """A small model with random weights, and a tokenizer that has read README.md."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train([str(ROOT / "README.md")], trainer)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
    model = model_class(config_class(**sizes | heads | ends | changes))
    model.to(torch.bfloat16).save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)],
)
def test_a_checkpoint_is_tuned_with_its_own_tokenizer(
    config_class, model_class, monkeypatch, tmp_path, capsys
):
    monkeypatch.syspath_prepend(ROOT / "examples/elastic_lm")
    model = checkpoint(tmp_path / "checkpoint", config_class, model_class)
    options = ["--checkpoint", str(tmp_path / "checkpoint"), "--other", str(ROOT / "CHANGELOG.md")]
    options += ["--preset", "smoke", "--lr", "0.01", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["tune.py", *options, "--threads", "1", "--device", "cpu"])
    assert "train" not in sys.modules  # of another example
    try:
        runpy.run_path(str(ROOT / "examples/elastic_lm/tune.py"), run_name="__main__")
    finally:
        sys.modules.pop("train", None)
    (row,) = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert 250 < row["not tuned"] < 350  # of 300 tokens
    assert row["whole, tuned alone"] < row["not tuned"]
    printed = capsys.readouterr().out
    assert printed.count("a token") == 5
    assert printed.count("6 updates in") == 3
    assert not (tmp_path / "out/pretrained").exists()
    subnet = AutoModelForCausalLM.from_pretrained(tmp_path / "out/subnet")
    assert type(subnet) is model_class
    assert subnet.config.num_key_value_heads == 2
    assert subnet.num_parameters() <= model.num_parameters()
    generate = pipeline("text-generation", str(tmp_path / "out/subnet"), device="cpu")
    (generated,) = generate("A supernet", max_new_tokens=5)
    assert generated["generated_text"].startswith("A supernet")


def test_tuning_as_a_supernet_is_compared_over_seeds(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples/elastic_lm")
    texts = ["--data", str(ROOT / "README.md"), "--other", str(ROOT / "CHANGELOG.md")]
    options = ["--preset", "smoke", *texts, "--out", str(tmp_path), "--threads", "1"]
    assert "train" not in sys.modules  # of another example
    try:
        for seeds in ("1", "2"):
            monkeypatch.setattr(sys, "argv", ["tune.py", *options, "--seeds", seeds])
            runpy.run_path(str(ROOT / "examples/elastic_lm/tune.py"), run_name="__main__")
    finally:
        sys.modules.pop("train", None)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["not tuned"] == rows[1]["not tuned"]
    assert all(row["whole, tuned alone"] < row["not tuned"] for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("6 updates in") == 1 + 2 * 3
    assert "largest subnet against whole, tuned alone" in printed
