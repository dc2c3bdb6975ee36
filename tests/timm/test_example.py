"""The example runs from a command line, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "timm_mobilenet" / "train.py"


def test_mobilenet_example(tmp_path):
    options = "--train-images 64 --validation-images 64 --epochs 1 --tune-epochs 1 --subnets 2"
    subprocess.run(
        [sys.executable, SCRIPT, *options.split(), "--batch-size", "16", "--out", tmp_path],
        check=True,
        capture_output=True,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {"static", "dynamic"}
    for arm, result in results.items():
        assert result["best, extracted"] == result["best, in the supernet"]
        assert 0 <= result["test, fine-tuned"] <= 1
        recipe = json.loads((tmp_path / arm / "subnet.json").read_text())
        assert recipe["model"]["name"] == "timm.models.efficientnet.EfficientNet"
