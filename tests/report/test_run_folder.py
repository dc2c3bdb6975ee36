"""Folders of runs: finished or not, whole or damaged, and what is said of the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nas_dynamic.experiment.cli import main
from nas_dynamic.report.run_folder import read_runs
from tests.report.page import page_of

pytestmark = pytest.mark.xdist_group("trained run")


def refusal(capsys, *arguments: Path | str) -> str:
    assert main(["report", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_unfinished_run(tiny, tmp_path):
    shutil.rmtree(tiny / "seed-5")
    page = page_of([tiny], tmp_path)
    assert "of 2 seeds, seed 5 is missing" in page.words
    assert "--resume" in page.words
    assert [row[0] for row in page.tables["Subnets with inherited weights"][1:]] == ["tiny, seed 3"]

    shutil.rmtree(tiny / "seed-3")
    page = page_of([tiny], tmp_path)
    assert "seeds 3 and 5 are missing" in page.words
    assert page.figures == []
    assert ["epochs", "4"] in page.tables["Configuration"]


def test_unfinished_comparison(runs, tmp_path):
    folder = Path(shutil.copytree(runs / "both", tmp_path / "both"))
    (folder / "compare.json").unlink()
    for seed in (3, 5):
        shutil.rmtree(folder / f"dynamic/seed-{seed}")
    page = page_of([folder], tmp_path)
    assert "of 2 seeds, seeds 3 and 5 are missing" in page.words
    assert not [name for name in page.tables if name.startswith("Diagnostics")]
    assert len(page.tables["Subnets with inherited weights"]) == 3
    shutil.rmtree(folder / "dynamic")
    assert [run.name for run in read_runs([folder])] == ["static"]


def test_folders_that_are_no_runs(runs, tmp_path, capsys):
    assert "is no folder" in refusal(capsys, tmp_path / "nowhere")
    (tmp_path / "empty/static").mkdir(parents=True)
    assert "holds no run: there is no config.json" in refusal(capsys, tmp_path / "empty")
    message = refusal(capsys, runs)
    assert "did you mean" in message
    assert str(runs / "tiny") in message
    assert str(runs / "both") in message
    assert "is given twice" in refusal(capsys, runs / "tiny", runs / "both/../tiny")
    assert "is given twice" in refusal(capsys, runs / "both", runs / "both/static")


def test_damaged_files(tiny, capsys):
    path = tiny / "seed-3/result.json"
    sound = path.read_text()
    for damage, reason in (
        (sound[:-40], "is damaged, it is not valid JSON"),
        ("", "is damaged"),
        (sound.replace('"accuracy"', '"acuracy"'), "subnets.0.accuracy: Field required"),
        (sound.replace('"seed": 3', '"seed": "three"'), "seed: Input should be"),
        ("[" * 100_000, "is damaged"),
    ):
        path.write_text(damage)
        message = refusal(capsys, tiny)
        assert str(path) in message
        assert reason in message
        assert "--resume" in message
    path.write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in refusal(capsys, tiny)
    path.write_text(sound)
    (tiny / "config.json").write_text("{")
    assert f"{tiny / 'config.json'} is damaged" in refusal(capsys, tiny)
    (tiny / "config.json").write_text("3")
    assert "no keys and values" in refusal(capsys, tiny)


def test_a_damaged_comparison(runs, tmp_path, capsys):
    folder = Path(shutil.copytree(runs / "both", tmp_path / "both"))
    (folder / "compare.json").write_text('{"seeds": [3]}')
    message = refusal(capsys, folder)
    assert "compare.json is not what nas-dynamic writes: arms: Field required" in message
    assert "the same `nas-dynamic compare` or `demo` makes it again" in message


def test_seeds_of_other_subnets_are_no_run(tiny, capsys):
    path = tiny / "seed-3/result.json"
    content = json.loads(path.read_text())
    content["subnets"] = content["subnets"][::-1]
    path.write_text(json.dumps(content))
    assert "has seeds 3 and 5 with other subnets" in refusal(capsys, tiny)


def test_runs_of_one_name_are_told_apart(runs, tiny, tmp_path):
    assert [run.name for run in read_runs([runs / "tiny", tiny])] == [
        f"{runs.name}/tiny",
        f"{tmp_path.name}/tiny",
    ]
    page = page_of([runs / "tiny", tiny], tmp_path)
    assert "Nothing differs." in page.text
    names = {path.name for path in (tmp_path / "page-figures").iterdir()}
    assert f"learning-rate-{tmp_path.name}-tiny.png" in names


def test_arms_of_a_comparison_keep_it_under_other_names(runs, tmp_path):
    """Beside a third run of the name of an arm, the arms are named by their folder as well."""
    third = Path(shutil.copytree(runs / "tiny", tmp_path / "dynamic"))
    page = page_of([runs / "both", third], tmp_path)
    assert "both/static and both/dynamic" in page.tables
    assert page.tables["both/static and both/dynamic"][1][0] == "Kendall τ by the loss"
    assert [r[0] for r in page.tables[f"both/static and {tmp_path.name}/dynamic"][1:]] == [
        "mean accuracy, inherited weights",
        "seconds of training",
    ]
