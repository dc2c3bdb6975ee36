"""The examples run; the MobileNet one goes on with a run that was stopped."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from timm.models import load_state_dict

pytestmark = pytest.mark.host

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = "--train-images 48 --validation-images 64 --batch-size 16 --epochs 2 --tune-epochs 1"


@pytest.fixture
def example(monkeypatch):
    """Import the example's module, at a size of seconds."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "timm_mobilenet"))
    train, mobilenet = importlib.import_module("train"), importlib.import_module("mobilenet")
    monkeypatch.setattr(mobilenet, "STAGES", [(32, 2), (40, 1)])
    monkeypatch.setitem(train.PRESETS, "small", train.PRESETS["small"] | {"strides": (2, 2)})
    yield train
    for name in ("train", "images", "mobilenet"):
        sys.modules.pop(name)


def run(example, monkeypatch, out, *options):
    arguments = [*OPTIONS.split(), "--subnets", "2", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    example.main()


def test_stopped_run_ends_as_one_that_was_not_stopped(example, monkeypatch, tmp_path):
    run(example, monkeypatch, tmp_path / "straight")
    save = example.CheckpointSaver.save_checkpoint
    saved = []

    def save_and_stop(self, epoch):
        save(self, epoch)
        saved.append(epoch)
        if len(saved) in (1, 3, 4):  # in the static arm, in its fine-tuning, in the dynamic arm
            raise KeyboardInterrupt

    monkeypatch.setattr(example.CheckpointSaver, "save_checkpoint", save_and_stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(example, monkeypatch, tmp_path / "stopped")
    run(example, monkeypatch, tmp_path / "stopped")
    assert saved == [0, 1, 0, 0, 1, 0]
    for arm in ("static", "dynamic"):
        results = [
            json.loads((tmp_path / name / arm / "result.json").read_text())
            for name in ("straight", "stopped")
        ]
        assert results[0] == results[1]
        assert results[0]["best, extracted"] == results[0]["best, in the supernet"]
        for file in ("last.pth.tar", "tuned/last.pth.tar"):
            one, other = (
                load_state_dict(str(tmp_path / name / arm / file), use_ema=True)
                for name in ("straight", "stopped")
            )
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
        recipe = json.loads((tmp_path / "straight" / arm / "subnet.json").read_text())
        assert recipe["model"]["name"] == "timm.models.efficientnet.EfficientNet"
    static, dynamic = (
        load_state_dict(str(tmp_path / "straight" / arm / "last.pth.tar"))
        for arm in ("static", "dynamic")
    )
    assert any(not torch.equal(static[name], dynamic[name]) for name in static)
    with pytest.raises(SystemExit, match=r"other options: lr 0\.004, now 0\.1\. Give the same"):
        run(example, monkeypatch, tmp_path / "stopped", "--lr", "0.1")


def test_elastic_vit_is_trained_and_taken_away(monkeypatch, tmp_path, capsys):
    script = EXAMPLES / "timm_vit" / "train.py"
    arguments = ["--epochs", "1", "--subnets", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    for arm in ("static", "dynamic"):
        assert f"in the supernet and rebuilt from {tmp_path / arm}" in printed
        recipe = json.loads((tmp_path / arm / "subnet.json").read_text())
        assert recipe["model"]["name"] == "timm.models.vision_transformer.VisionTransformer"


def test_latency_table_is_read_again(example, monkeypatch, tmp_path, capsys):
    script = EXAMPLES / "timm_mobilenet" / "latency.py"
    options = ["--seconds", "0.001", "--subnets", "2", "--out", str(tmp_path / "latency.json")]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    for how in ("measured in", "read from"):
        runpy.run_path(str(script), run_name="__main__")
        printed = capsys.readouterr().out
        assert f"entries, {how}" in printed
        assert "2 random subnets, table against measured: mean" in printed
