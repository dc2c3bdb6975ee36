"""The command line: usage, what is missing, and configurations that cannot be trained."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import nas_dynamic
from nas_dynamic.experiment.cli import main
from tests.experiment.configurations import (
    SMALLEST,
    WITHOUT_SCHEDULER,
    write,
)

if importlib.util.find_spec("gym"):
    importlib.import_module("gym")  # which NNI imports, and which speaks when it first is

ROOT = Path(__file__).parents[2]

ONE_CYCLE = {"name": "OneCycleLR", "kwargs": {"max_lr": 0.1, "total_steps": 4}}
"""A scheduler that cannot step a fifth time."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.process
def test_a_script_in_a_checkout_finds_the_adapters_whatever_is_installed(tmp_path):
    for folder in ("nas_dynamic", "adapters"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
        "import nas_dynamic.adapters.lightning as lightning\n"
        "from nas_dynamic.adapters.timm import attach\n"
        "print(lightning.__file__, attach.__module__)"
    )
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    file, module = ended.stdout.split()[-2:]
    assert Path(file) == tmp_path / "adapters/lightning.py"
    assert module == "nas_dynamic.adapters.timm.training"


@pytest.mark.process
def test_core_imports_no_framework():
    code = (
        "import sys, nas_dynamic; print([m for m in ('scipy', 'nni', 'timm', 'matplotlib', "
        "'pytorch_lightning', 'sklearn', 'torchvision', 'pydantic', 'yaml', 'rich') "
        "if m in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.process
@pytest.mark.parametrize(
    ("missing", "extra"),
    [
        ("pydantic", "experiment"),
        ("rich", "experiment"),
        ("nni", "nni"),
        ("pytorch_lightning", "nni"),
    ],
)
def test_missing_extra_is_named(missing, extra, tmp_path):
    config = write(tmp_path / "config.yaml")
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from nas_dynamic.experiment import cli; "
        f"print([cli.main(command.split()) for command in ('train {config}', 'compare {config}', "
        "'demo')])"
    )
    result = python(code)
    assert result.stdout.strip() == "[1, 1, 1]", result.stderr
    lines = result.stderr.splitlines()
    assert len([line for line in lines if f"pip install 'nas-dynamic[{extra}]'" in line]) == 3
    assert "Traceback" not in result.stderr


@pytest.mark.process
def test_help_is_there_without_waiting_for_torch():
    """In seconds it would depend on the machine; torch alone takes two of them."""
    code = """
import sys
from nas_dynamic.experiment.cli import main
before = set(sys.modules)
for arguments in ([], ["--help"], ["--version"], ["train", "--help"]):
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code
print(len(sys.modules), [m for m in ("torch", "numpy", "rich", "yaml") if m in sys.modules])
"""
    result = python(code)
    count, loaded = result.stdout.splitlines()[-1].split(" ", 1)
    assert loaded == "[]", result.stderr
    assert int(count) < 400, "modules; with torch they are thousands"
    assert result.stdout.startswith("usage: nas-dynamic")
    assert f"nas-dynamic {metadata.version('nas-dynamic')}" in result.stdout


def test_names_that_are_imported_late_are_those_of_the_front_door():
    assert sorted(name for names in nas_dynamic.MODULES.values() for name in names) == sorted(
        nas_dynamic.__all__
    )
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = nas_dynamic.nonsense


@pytest.mark.parametrize(
    "command", ["", "demo", "train", "compare", "search", "export", "report", "doctor"]
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*command.split(), "--help"])
    assert exit.value.code == 0
    assert "usage: nas-dynamic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learn"], "invalid choice: 'learn'"),
        (["demo", "--subnets", "1"], "1 is less than 2"),
        (["compare", "a.yaml", "--subnets", "2"], "2 is less than 3"),
        (["demo", "--seed", "-1"], "-1"),
        *[
            ([*command, "--seed", str(2**32)], "4294967296 is more than 4294967295")
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


@pytest.mark.host
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
        ({"dynamic": {"warmup_steps": 999}}, "dynamic: warmup_steps must lie in 0 <= "),
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


@pytest.mark.host
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"name": "NasBench202"}}, "config.yaml: space.name is 'NasBench202'"),
        ({"epochs": "x"}, "config.yaml is not valid:\n  epochs is 'x': "),
    ],
)
def test_the_file_and_the_key_are_named(changes, message, tmp_path, capsys):
    config = write(tmp_path / "config.yaml", **WITHOUT_SCHEDULER | changes)
    assert main(["train", config, "--out", str(tmp_path / "runs")]) == 1
    assert message in capsys.readouterr().err


def test_the_place_in_a_file_that_is_no_yaml_is_named(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("epochs: 3\nspace: [\n")
    assert main(["train", str(tmp_path / "a.yaml")]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'a.yaml'}, line 3, column 1, is not valid YAML: " in error
    assert error.count("\n") == 1


@pytest.mark.host
@pytest.mark.parametrize("command", ["train", "compare", "demo"])
def test_an_out_that_cannot_be_written_is_told_before_all_else(command, tmp_path, capsys):
    config = [] if command == "demo" else [write(tmp_path / "config.yaml")]
    (tmp_path / "file").write_text("mine")
    assert main([command, *config, "--out", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'file'} is a file; choose another folder" in error
    assert error.count("\n") == 1


def test_unknown_key_is_refused(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", epochz=3)
    assert main(["train", config, "--out", str(tmp_path / "runs")]) == 1
    assert "epochz is not a key; did you mean epochs?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_bug_in_a_space_of_ones_own_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "buggy_space.py").write_text("def space(num_labels):\n    return {}['bug']\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = write(tmp_path / "config.yaml", space={"name": "buggy_space:space"})
    with pytest.raises(KeyError, match="bug"):
        main(["train", config, "--out", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "examples").glob("*.yaml")))
def test_examples_are_valid(name):
    from nas_dynamic.experiment.config import load

    assert load(ROOT / "examples" / name).epochs
