"""The script of docs/nni.md, as it is written there but for its length."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/nni.md"
LENGTHS = {"max_epochs=40": "max_epochs=2", "budget=50": "budget=3"}
CHECK = """
import torch
best = found.best
assert sum(p.numel() for p in network.parameters()) == best.values["parameters"]
assert network.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
"""


@pytest.mark.process
def test_the_script_of_the_page_trains_searches_and_extracts(tmp_path):
    script = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1]
    for written, short in LENGTHS.items():
        assert written in script
        script = script.replace(written, short)
    (tmp_path / "script.py").write_text(script + CHECK)
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^\{'cell/0_1': .*\} \{'accuracy': 0\.\d+, 'loss': ", ended.stdout, re.M)
