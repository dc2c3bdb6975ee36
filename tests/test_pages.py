"""The whole scripts that pages of hosts begin with, as written there but for their length."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
LENGTHS = {
    "nni.md": {"max_epochs=40": "max_epochs=2", "budget=50": "budget=3"},
    "timm.md": {"num_epochs=30": "num_epochs=2", "budget=50": "budget=3"},
}
CHECK = """
best = found.best
assert sum(p.numel() for p in network.parameters()) == best.values["parameters"]
assert network.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
assert type(network).__module__.startswith({library!r})
"""
LIBRARIES = {"nni.md": "nni.", "timm.md": "timm."}


@pytest.mark.process
@pytest.mark.parametrize("page", LENGTHS)
def test_the_script_of_a_page_trains_searches_and_extracts(page, tmp_path):
    script = re.search(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)[1]
    for written, short in LENGTHS[page].items():
        assert written in script
        script = script.replace(written, short)
    (tmp_path / "script.py").write_text(script + CHECK.format(library=LIBRARIES[page]))
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^\{'.*': .*\} \{'accuracy': 0\.\d+, 'loss': ", ended.stdout, re.M)
