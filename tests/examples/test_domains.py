"""Examples of other kinds of supernet: they run, in seconds, and go on where they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "auto_gnn": "--updates 4 --epochs 2 --subnets 3 --seeds 1 --alone-seeds 2",
    "eagan": "--updates 2 --alone 2 --tuning 1 --budget 9 --seeds 1",
    "tangle": "--updates 2 --budget 9 --alone 1 --inits 1 --seeds 1",
    "blockwise": "--updates 2 --epochs 1 --subnets 4 --alone-seeds 1 --seeds 1",
    "supertickets": "--updates 8 --tuning 4 --budget 2 --seeds 1",
    "recipes": "--epochs 24 --alone 1 --seeds 1",
}
ROWS = {
    "auto_gnn": 2 + 4,
    "eagan": 4,
    "tangle": 5,
    "blockwise": 1 + 5,
    "supertickets": 4,
    "recipes": 5,
}
NEEDS = {
    "auto_gnn": ["torch_geometric"],
    "eagan": ["pymoo"],
    "tangle": ["pymoo", "timm"],
    "recipes": ["optuna"],
}
TELLS = {
    "auto_gnn": "less unconstrained",
    "eagan": "two stages less joint",
    "tangle": "less spos",
    "blockwise": "less parameters",
    "supertickets": "less tickets",
    "recipes": "less architecture",
}


def command(example, *words):
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / example / "train.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.process
@pytest.mark.parametrize("example", SMALL)
def test_it_makes_what_its_results_lack_and_tells_them(example, tmp_path):
    pytest.importorskip("sklearn")
    for package in NEEDS.get(example, []):
        pytest.importorskip(package)
    results = tmp_path / "results.jsonl"
    options = [*SMALL[example].split(), "--results", str(results)]
    command(example, "run", *options)
    rows = results.read_text().splitlines()
    assert len({(json.loads(r)["arm"], json.loads(r)["seed"]) for r in rows}) == ROWS[example]
    results.write_text("\n".join(rows[:-1]) + "\n")  # as if it had been stopped before the last
    command(example, "run", *options)
    again = results.read_text().splitlines()
    first, last = json.loads(rows[-1]), json.loads(again[-1])
    assert again[:-1] == rows[:-1]
    assert first | {"seconds": 0} == last | {"seconds": 0}
    table = command(example, "table", *options)
    assert TELLS[example] in table
