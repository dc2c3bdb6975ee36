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
