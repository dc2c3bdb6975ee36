from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml
from scipy.stats import kendalltau

from nas_dynamic.experiment import run as experiment
from nas_dynamic.experiment.cli import main
from nas_dynamic.report.run_folder import read_runs
from nas_dynamic.report.tables import scores
from tests.attach.reference import assert_identical

# So small networks compute faster, and always the same, with one thread.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).parents[2]


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        **options,
    )


def test_core_imports_no_framework():
    code = (
        "import sys, nas_dynamic; print([m for m in ('scipy', 'nni', 'timm', 'matplotlib', "
        "'pytorch_lightning', 'sklearn', 'torchvision', 'pydantic', 'yaml', 'rich') "
        "if m in sys.modules])"
    )
    assert python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [("pydantic", ["train", "a.yaml"], "experiment"), ("nni", ["demo"], "nni")],
)
def test_missing_extra_is_named(missing, command, extra):
    code = f"import sys; sys.modules[{missing!r}] = None; from nas_dynamic.experiment import cli; "
    result = python("-c", code + f"sys.exit(cli.main({command}))")
    assert result.returncode == 1
    assert f"pip install 'nas-dynamic[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["train", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    assert "usage: nas-dynamic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["demo", "--subnets", "1"], "1 is less than 2"),
        (["demo", "--seed", "-1"], "-1"),
        *[
            ([*command, "--seed", "0", str(2**32)], "4294967296 is more than 4294967295")
            for command in (["demo"], ["train", "a.yaml"], ["compare", "a.yaml"])
        ],
        (["train", "a.yaml", "--precision", "8"], "invalid choice"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


DEMO = ["demo", "--seed", "3", "--epochs", "2", "--standalone-epochs", "2", "--subnets", "6"]


def test_demo(tmp_path):
    started = python("-m", "nas_dynamic", *DEMO, cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    assert "arning" not in started.stderr
    assert "\x1b" not in started.stdout  # no terminal, no control characters
    for text in ("parameter count", "static, seed 3", "dynamic, seed 3", "n = 6 subnets"):
        assert text in started.stdout

    results = json.loads((tmp_path / "runs/demo/results.json").read_text())
    truth = [subnet["accuracy"] for subnet in results["truth"]]
    sizes = [subnet["parameters"] for subnet in results["truth"]]
    assert results["parameters"]["kendall"]["value"] == pytest.approx(kendalltau(sizes, truth)[0])
    traces = {}
    for name, (arm,) in results["arms"].items():
        run = json.loads((tmp_path / f"runs/demo/{name}/seed-3.json").read_text())
        accuracies = [subnet["accuracy"] for subnet in run["subnets"]]
        assert [s["architecture"] for s in run["subnets"]] == [
            s["architecture"] for s in results["truth"]
        ]
        expected = kendalltau(accuracies, truth)[0]
        assert arm["kendall"]["value"] == pytest.approx(expected, nan_ok=True)
        assert arm["best"]["accuracy"] == truth[accuracies.index(max(accuracies))]
        traces[name] = run["trace"]
    # The same subnets in the same order, and only the dynamic arm's lr depends on them.
    assert [r["parameters"] for r in traces["static"]] == [
        r["parameters"] for r in traces["dynamic"]
    ]
    assert len(traces["static"]) == 22
    assert len({row["lr"] for row in traces["static"]}) == 2
    assert len({row["lr"] for row in traces["dynamic"]}) > 15
    picture = matplotlib.image.imread(tmp_path / "runs/demo/overview.png")
    assert picture.shape[1] > 2 * picture.shape[0]
    assert picture[..., :3].std() > 0.05

    (cache,) = (tmp_path / "runs").glob("stand-alone-*.json")
    written = cache.stat().st_mtime_ns
    assert main([*DEMO, "--out", str(tmp_path / "runs")]) == 0
    assert cache.stat().st_mtime_ns == written
    again = json.loads((tmp_path / "runs/demo/results.json").read_text())
    for arm in (*results["arms"].values(), *again["arms"].values()):
        arm[0].pop("seconds")
    assert (again["truth"], again["arms"]) == (results["truth"], results["arms"])


SMALLEST = {
    "name": "NasBench201",
    "kwargs": {"stem_out_channels": 4, "num_modules_per_stack": 1},
}
CONFIG = {
    "name": "small",
    "space": SMALLEST,
    "data": {"name": "digits", "validation": 0.4},
    "optimizer": {"kwargs": {"lr": 0.05, "momentum": 0.9}},
    "scheduler": {"name": "CosineAnnealingLR", "kwargs": {"T_max": 24}},
    "dynamic": {"curve": "scheduler"},
    "scoring": {"subnets": 5},
    "epochs": 24,
    "seeds": [0],
    "device": "cpu",
}


WITHOUT_SCHEDULER = {"dynamic": {}, "scheduler": None}
"""Changes of `CONFIG` that leave its lr to CaLR alone."""

ONE_CYCLE = {"name": "OneCycleLR", "kwargs": {"max_lr": 0.1, "total_steps": 4}}
"""A scheduler that cannot step a fifth time."""


def write(path: Path, **changes) -> str:
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return str(path)


def test_a_training_that_diverges_ends_with_a_word_and_keeps_no_result(tmp_path, capsys):
    changes = {"dynamic": {}, "scheduler": None, "epochs": 4}
    optimizer = {"kwargs": {"lr": 1e6, "momentum": 0.9}}
    config = write(tmp_path / "config.yaml", optimizer=optimizer, **changes)
    assert main(["train", config, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "the training diverged: the gradients of step" in error
    assert "Lower the lr" in error
    assert not list(tmp_path.glob("**/result*.json"))


def test_a_supernet_without_finite_weights_is_scored_and_reported(tmp_path):
    config = write(
        tmp_path / "config.yaml",
        optimizer={"kwargs": {"lr": 1e6, "momentum": 0.9}},
        dynamic={"nonfinite": "ignore"},
        scheduler=None,
        epochs=4,
    )
    assert main(["train", config, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "small/results.json").read_text())
    assert None in [subnet["loss"] for subnet in results["seeds"][0]["subnets"]]
    assert main(["report", str(tmp_path / "small")]) == 0


def test_a_subnet_that_diverged_is_not_the_best(tmp_path, monkeypatch):
    train_supernet = experiment.train_supernet

    def spoiled(*arguments, **options):
        trained = train_supernet(*arguments, **options)
        with torch.no_grad():
            for name, parameter in trained.model.named_parameters():
                if ".conv_3x3." in name:
                    parameter.fill_(torch.nan)
            # Every subnet then says 0, as one whose logits are NaN does.
            trained.model.classifier.bias[0] = 1e3
        return trained

    monkeypatch.setattr(experiment, "train_supernet", spoiled)
    config = write(tmp_path / "config.yaml", epochs=1, scoring={"subnets": 12})
    assert main(["train", config, "--out", str(tmp_path)]) == 0
    (result,) = json.loads((tmp_path / "small/results.json").read_text())["seeds"]
    losses = [subnet["loss"] for subnet in result["subnets"]]
    assert losses[0] is None, "max must have it first, to be tempted"
    assert len({subnet["accuracy"] for subnet in result["subnets"]}) == 1
    best = min(range(12), key=lambda n: math.inf if losses[n] is None else losses[n])
    assert result["best"] == result["subnets"][best]
    (run,) = read_runs([tmp_path / "small"])
    assert scores([run]).rows[0][4] == f"{result['best']['parameters']:,}"


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
        env=ENVIRONMENT,
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


def test_killed_training_resumes_to_the_result_of_an_unbroken_one(runs, killed, tmp_path, capsys):
    config, out, seed = killed
    assert (runs / "straight/small/overview.png").exists()
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


def test_resume_with_no_sound_checkpoint_is_a_clear_error(killed, capsys):
    config, out, seed = killed
    for name in ("last.ckpt", "last.ckpt.previous"):
        content = bytearray((seed / name).read_bytes())
        middle = slice(
            len(content) // 2, len(content) // 2 + 200
        )  # more than the padding of a part
        content[middle] = bytes(byte ^ 1 for byte in content[middle])
        (seed / name).write_bytes(content)
    assert main(["train", config, "--out", out, "--resume"]) == 1
    errors = capsys.readouterr().err
    for name in ("last.ckpt", "last.ckpt.previous"):
        assert re.search(rf"{name} (is damaged: the checksum of|cannot be read: )", errors)
    assert "Put a copy in the place of one, or remove them to train anew" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"name": "NasBench202"}}, "space.name is 'NasBench202'; it must be"),
        ({"space": {"name": "nowhere:space"}}, "cannot import it"),
        ({"space": {"name": "torch.nn:Identity"}}, "it must give an NNI ModelSpace"),
        (
            {"space": {"name": "NasBench201", "kwargs": {"channels": 4}}},
            "space.kwargs are {'channels': 4}, which do not suit NasBench201: ",
        ),
        (
            {"space": {"name": "NasBench201", "kwargs": {"stem_out_channels": "x"}}},
            "space.kwargs are {'stem_out_channels': 'x'}, which do not suit NasBench201: ",
        ),
        (
            {"space": {"name": "NasBench201", "kwargs": {"stem_out_channels": -4}}},
            "which do not suit NasBench201: Trying to create tensor with negative dimension",
        ),
        ({"space": {"name": "DARTS", "kwargs": {"dataset": "x"}}}, "Unsupported dataset: x"),
        (
            {"space": SMALLEST | {"kwargs": SMALLEST["kwargs"] | {"num_labels": 3}}},
            "it must give logits of shape (2, 10), one for each of 10 classes: see space.kwargs",
        ),
        ({"space": {"name": "NasBench101"}}, "'NasBench101', which makes no supernet: "),
        ({"space": {"name": "AutoFormer"}}, "space AutoFormer cannot take images of 3×8×8: "),
        ({"space": {"name": ":space"}}, "it must be module:callable"),
        ({"space": {"name": "math:pi"}}, "which is a float; it must be a callable"),
        (
            {"dynamic": {"group_by": "nonsense"}},
            "dynamic: group_by='nonsense' is no label of the space; labels are 'cell/0_1', ",
        ),
        ({"dynamic": {"gamma_max": 0.5}}, "dynamic: gamma_min must lie in 0 < gamma_min <= "),
        ({"dynamic": {"warmup_steps": 999}}, "dynamic: warmup_steps must lie in 0 <= "),
        (
            {"dynamic": {"complexity": "macs", "gamma_max": 0.5}},
            "dynamic: gamma_min must lie in 0 < gamma_min <= ",
        ),
        ({"optimizer": {"name": "LBFGS"}}, "optimizer.name is 'LBFGS': LBFGS is not supported: "),
        (
            {"optimizer": {"kwargs": {"lr": "abc"}}},
            "optimizer.kwargs are {'lr': 'abc'}, which do not suit SGD: ",
        ),
        ({"optimizer": {"name": "Adam", "kwargs": {"betas": [0.9]}}}, "do not suit Adam: "),
        (
            {"optimizer": {"name": "SparseAdam"}, "dynamic": {"idle": "freeze"}},
            "optimizer: SparseAdam cannot step: SparseAdam does not support dense gradients",
        ),
        ({"scheduler": {"name": "StepLR"}}, "scheduler.kwargs are {}, which do not suit StepLR: "),
        (
            {"scheduler": {"name": "StepLR", "kwargs": {"step_size": "x"}}},
            "scheduler.kwargs are {'step_size': 'x'}, which do not suit StepLR: ",
        ),
        *[
            (
                budget | {"scheduler": ONE_CYCLE | {"interval": interval}},
                "which do not suit OneCycleLR: Tried to step 5 times. The specified number of",
            )
            for budget, interval in (
                ({"epochs": None, "steps": 5}, "step"),
                ({"epochs": 5}, "epoch"),
                ({"epochs": None, "steps": 5 * 12 + 1}, "epoch"),
            )
        ],
        ({"batch_size": 4000}, "batch_size is 4000, and there are 808 training images"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which cannot be used: "),
        ({"data": {"name": "digits", "validation": 0.001}}, "data: The test_size = 2 should be"),
        ({"data": {"name": "ImageFolder", "root": "nowhere"}}, "nowhere/train does not exist"),
    ],
)
def test_configuration_that_cannot_run_is_refused_in_a_line(changes, message, tmp_path, capsys):
    importlib.import_module("nas_dynamic.experiment.run")
    capsys.readouterr()  # what NNI's first import prints is no part of the message
    config = write(tmp_path / "config.yaml", **WITHOUT_SCHEDULER | changes)
    assert main(["train", config, "--out", str(tmp_path / "runs")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("nas-dynamic: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_unknown_key_is_refused(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", epochz=3)
    assert main(["train", config, "--out", str(tmp_path / "runs")]) == 1
    assert "epochz is not a key; did you mean epochs?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


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


def test_a_demo_that_cannot_run_leaves_the_last_one(tmp_path, capsys):
    earlier = tmp_path / "demo/results.json"
    earlier.parent.mkdir()
    earlier.write_text("{}")
    assert main([*DEMO, "--device", "cuda:99", "--out", str(tmp_path)]) == 1
    assert "device is 'cuda:99', which cannot be used: " in capsys.readouterr().err
    assert list(tmp_path.glob("**/*.json")) == [earlier]


def test_a_bug_in_a_space_of_ones_own_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "buggy_space.py").write_text("def space(num_labels):\n    return {}['bug']\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = write(tmp_path / "config.yaml", space={"name": "buggy_space:space"})
    with pytest.raises(KeyError, match="bug"):
        main(["train", config, "--out", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


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
        scheduler=None,
        dynamic={},
        optimizer={"name": "AdamW", "kwargs": {"lr": 0.001}},
    )
    assert main(["train", config, "--out", str(tmp_path), "--seed", "1", "2"]) == 0
    results = json.loads((tmp_path / "small/results.json").read_text())
    assert [result["seed"] for result in results["seeds"]] == [1, 2]
    trace = json.loads((tmp_path / "small/seed-2/result.json").read_text())["trace"]
    assert [row["step"] for row in trace] == list(range(12))
    assert len({row["gamma"] for row in trace}) > 6


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "examples").glob("*.yaml")))
def test_examples_are_valid(name):
    from nas_dynamic.experiment.config import load

    assert load(ROOT / "examples" / name).epochs
