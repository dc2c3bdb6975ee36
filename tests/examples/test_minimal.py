"""The smallest script: it runs, and README shows it as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/minimal.py"


@pytest.mark.process
def test_it_ends_in_a_ranking_and_a_network_that_has_learnt(tmp_path):
    pytest.importorskip("sklearn")
    result = subprocess.run(
        [sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    losses = [
        float(loss) for loss in re.findall(r"^loss ([\d.]+), [\d,]+ param", result.stdout, re.M)
    ]
    assert losses == sorted(losses)
    assert len(losses) == 3
    (accuracy,) = re.findall(
        r"^the best one alone: ([\d.]+)% of the test images$", result.stdout, re.M
    )
    assert float(accuracy) > 90
    assert torch.load(tmp_path / "subnet.pt", weights_only=True)["0.weight"].shape == (16, 1, 3, 3)


def test_readme_shows_it_as_it_is():
    readme = (ROOT / "README.md").read_text()
    quoted = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    # From the first import on: the docstring is the sentence above it.
    assert SCRIPT.read_text().partition("\n\n")[2] in quoted
