"""`nas-dynamic train`: what it leaves, how it ends, and how it goes on after a stop."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nas_dynamic.experiment import run as experiment
from nas_dynamic.experiment.cli import main
from nas_dynamic.report.run_folder import read_runs
from nas_dynamic.report.tables import scores
from nas_dynamic.storage.journal import RunError
from tests.attach.reference import assert_identical
from tests.experiment.configurations import WITHOUT_SCHEDULER, write

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("killed run")]


def test_a_training_that_diverges_ends_with_a_word_and_keeps_no_result(tmp_path, capsys):
    optimizer = {"kwargs": {"lr": 1e6, "momentum": 0.9}}
    changes = WITHOUT_SCHEDULER | {"epochs": 4, "optimizer": optimizer}
    config = write(tmp_path / "config.yaml", **changes)
    assert main(["train", config, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "the training diverged: the gradients of step" in error
    assert "Lower the lr" in error
    assert not list(tmp_path.glob("**/result*.json"))


def test_a_supernet_without_finite_weights_is_scored_and_reported(tmp_path, capsys):
    config = write(
        tmp_path / "config.yaml",
        optimizer={"kwargs": {"lr": 1e6, "momentum": 0.9}},
        dynamic={"nonfinite": "ignore"},
        scheduler=None,
        epochs=4,
    )
    assert main(["train", config, "--out", str(tmp_path)]) == 0
    assert "small, seed 0" in capsys.readouterr().out
    results = json.loads((tmp_path / "small/results.json").read_text())
    assert None in [subnet["loss"] for subnet in results["seeds"][0]["subnets"]]
    assert main(["report", str(tmp_path / "small")]) == 0


def test_a_subnet_that_diverged_is_not_the_pick(tmp_path, monkeypatch):
    train_supernet = experiment.train_supernet

    def spoiled(*arguments, **options):
        trained = train_supernet(*arguments, **options)
        with torch.no_grad():
            for name, parameter in trained.supernet.model.named_parameters():
                if ".conv_3x3." in name:
                    parameter.fill_(torch.nan)
            # Every subnet then says 0, as one whose logits are NaN does.
            trained.supernet.model.classifier.bias[0] = 1e3
        return trained

    monkeypatch.setattr(experiment, "train_supernet", spoiled)
    config = write(tmp_path / "config.yaml", epochs=1, scoring={"subnets": 12})
    assert main(["train", config, "--out", str(tmp_path)]) == 0
    (result,) = json.loads((tmp_path / "small/results.json").read_text())["seeds"]
    losses = [subnet["loss"] for subnet in result["subnets"]]
    assert losses[0] is None, "min must have it first, to be tempted"
    assert len({subnet["accuracy"] for subnet in result["subnets"]}) == 1
    pick = min(range(12), key=lambda n: math.inf if losses[n] is None else losses[n])
    assert result["pick"] == result["subnets"][pick]
    (run,) = read_runs([tmp_path / "small"])
    assert scores([run]).rows[0][4] == f"{result['pick']['parameters']:,}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a configuration, its unbroken run, and one that was killed."""
    folder = tmp_path_factory.mktemp("runs")
    config = write(folder / "config.yaml")
    assert main(["train", config, "--out", str(folder / "straight")]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "nas_dynamic", "train", config, "--out", str(folder / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    checkpoint = folder / "killed/small/seed-0/last.ckpt"
    while not checkpoint.with_name("last.ckpt.previous").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(checkpoint, weights_only=True)["epoch"] < 20
    return folder


@pytest.fixture
def killed(runs, tmp_path):
    """A copy of the killed run: configuration, folder of runs, and folder of its seed."""
    shutil.copytree(runs / "killed", tmp_path / "killed")
    return str(runs / "config.yaml"), str(tmp_path / "killed"), tmp_path / "killed/small/seed-0"


def assert_ends_as(straight: Path, resumed: Path) -> None:
    """The same scores, and to the bit the same losses of updates and the same last weights."""
    for name in ("subnets", "trace"):
        here, there = (json.loads((run / "result.json").read_text()) for run in (resumed, straight))
        assert here[name] == there[name]
    here, there = (
        torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
        for run in (resumed, straight)
    )
    assert_identical(here, there)


@pytest.mark.process
def test_killed_training_resumes_to_the_result_of_an_unbroken_one(runs, killed, tmp_path, capsys):
    config, out, seed = killed
    assert main(["train", config, "--out", out]) == 1
    assert "holds an unfinished run; go on with it by --resume" in capsys.readouterr().err
    other = write(tmp_path / "other.yaml", batch_size=16)
    assert main(["train", other, "--out", out, "--resume"]) == 1
    assert "batch_size was 64 and is 16" in capsys.readouterr().err

    assert main(["train", config, "--out", out, "--resume"]) == 0
    assert_ends_as(runs / "straight/small/seed-0", seed)

    capsys.readouterr()
    assert main(["train", config, "--out", out, "--resume"]) == 1
    assert "holds a finished run, which is not overwritten" in capsys.readouterr().err


@pytest.mark.process
def test_a_training_that_is_interrupted_says_how_to_go_on_and_does(runs, tmp_path):
    config, out = str(runs / "config.yaml"), tmp_path / "a folder"
    process = subprocess.Popen(
        [sys.executable, "-m", "nas_dynamic", "train", config, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not list(out.glob("*/*/last.ckpt.previous")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate()
    assert process.returncode == 130
    assert "ERROR" not in printed + errors
    said = re.fullmatch(
        r"nas-dynamic: stopped after epoch (\d+) of 24; go on: nas-dynamic (.*)",
        errors.splitlines()[-1],
    )
    # `previous` is there before the second checkpoint is in its place.
    assert 1 <= int(said[1]) < 24
    arguments = shlex.split(said[2])
    assert arguments == ["train", config, "--out", str(out), "--resume"]
    assert main(arguments) == 0
    assert_ends_as(runs / "straight/small/seed-0", out / "small/seed-0")


@pytest.mark.process
@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_resume_goes_back_to_the_checkpoint_before_a_damaged_one(damage, runs, killed):
    config, out, seed = killed
    last = seed / "last.ckpt"
    content = last.read_bytes()
    last.unlink()
    if damage == "cut off":
        last.write_bytes(content[:-500])
    with pytest.warns(UserWarning, match=rf"last\.ckpt .*{damage}.* went back to .*previous"):
        assert main(["train", config, "--out", out, "--resume"]) == 0
    assert_ends_as(runs / "straight/small/seed-0", seed)


@pytest.mark.process
def test_resume_with_no_sound_checkpoint_is_a_clear_error(killed, capsys):
    config, out, seed = killed
    for name in ("last.ckpt", "last.ckpt.previous"):
        content = bytearray((seed / name).read_bytes())
        # More than the padding of a part.
        middle = slice(len(content) // 2, len(content) // 2 + 200)
        content[middle] = bytes(byte ^ 1 for byte in content[middle])
        (seed / name).write_bytes(content)
    assert main(["train", config, "--out", out, "--resume"]) == 1
    errors = capsys.readouterr().err
    for name in ("last.ckpt", "last.ckpt.previous"):
        assert re.search(rf"{name} (is damaged: the checksum of|cannot be read: )", errors)
    assert "Put a copy in the place of one, or remove them to train anew" in errors
    assert "Traceback" not in errors


@pytest.mark.process
def test_the_remedy_for_a_damaged_seed_works(runs, tmp_path, capsys):
    shutil.copytree(runs / "straight", tmp_path / "straight")
    folder = tmp_path / "straight/small"
    before = json.loads((folder / "seed-0/result.json").read_text())
    (folder / "seed-0/result.json").write_text("{")
    with pytest.raises(RunError, match=r"result.json is damaged.*; remove it, and results.json"):
        read_runs([folder])
    (folder / "seed-0/result.json").unlink()
    (folder / "results.json").unlink()
    config = str(runs / "config.yaml")
    assert main(["train", config, "--out", str(tmp_path / "straight"), "--resume"]) == 0
    after = json.loads((folder / "seed-0/result.json").read_text())
    assert after | {"cost": None} == before | {"cost": None}


def test_a_configuration_that_was_refused_trains_once_it_is_mended(tmp_path, capsys):
    short = WITHOUT_SCHEDULER | {"epochs": None, "steps": 2, "scoring": {"subnets": 2}}
    out = ["--out", str(tmp_path)]
    for typo in ({"group_by": "nonsense"}, {"group_by": "cell/0_1", "gamma_max": 0.5}):
        assert main(["train", write(tmp_path / "config.yaml", **short | {"dynamic": typo}), *out])
    mended = {"group_by": "cell/0_1", "gamma_max": 0.5, "gamma_min": 0.5}
    config = write(tmp_path / "config.yaml", **short | {"dynamic": mended})
    assert main(["train", config, *out]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "small/results.json").read_text())
    assert results["seeds"][0]["group_by"] == "cell/0_1"


def test_space_of_ones_own_and_steps(tmp_path, monkeypatch):
    (tmp_path / "own_space.py").write_text(
        "from nni.nas.hub.pytorch import ProxylessNAS\n"
        "def space(num_labels, width):\n"
        "    return ProxylessNAS(num_labels, (8, 8, 8, 8, 8, 8, 8, 8, width))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = write(
        tmp_path / "config.yaml",
        space={"name": "own_space:space", "kwargs": {"width": 16}},
        epochs=None,
        steps=12,
        **WITHOUT_SCHEDULER,
        scoring={"subnets": 2},
        optimizer={"name": "AdamW", "kwargs": {"lr": 0.001}},
    )
    assert main(["train", config, "--out", str(tmp_path), "--seed", "1", "2"]) == 0
    results = json.loads((tmp_path / "small/results.json").read_text())
    assert [result["seed"] for result in results["seeds"]] == [1, 2]
    trace = json.loads((tmp_path / "small/seed-2/result.json").read_text())["trace"]
    assert [row["step"] for row in trace] == list(range(12))
    assert len({row["gamma"] for row in trace}) > 6
