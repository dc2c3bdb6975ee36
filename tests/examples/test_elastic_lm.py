"""The example goes from pretraining to a subnet that generates, at a size of seconds."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaForCausalLM

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
