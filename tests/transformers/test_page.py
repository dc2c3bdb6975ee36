"""What docs/elastic_lm.md shows runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.host

PAGE = Path(__file__).parents[2] / "docs/elastic_lm.md"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    bits, int8, losses = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    if importlib.util.find_spec("torchao"):
        exec(bits.replace("budget=200", "budget=30"), names)
        exec(
            int8,
            names | {"transformers": transformers, "AutoModelForCausalLM": AutoModelForCausalLM},
        )
        texts = names["texts"]
        loaded = AutoModelForCausalLM.from_pretrained("subnet-int8")
        assert torch.equal(loaded(texts).logits, names["subnet"].eval()(texts).logits)
    names["tokens"] = names["texts"][:2]
    exec(losses, names)
    assert names["loss"] > names["teacher"].loss
    subnet = AutoModelForCausalLM.from_pretrained("runs/elastic_lm/subnet")
    assert subnet.num_parameters() == names["parameters"](names["architecture"])
