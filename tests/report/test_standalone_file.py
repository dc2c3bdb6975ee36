"""Stand-alone accuracies from a file: of any kind of table, matched to the subnets of a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from nas_dynamic.experiment.cli import main
from nas_dynamic.report.format import number
from nas_dynamic.storage.journal import RunError
from tests.report.page import page_of

pytestmark = pytest.mark.xdist_group("trained run")


def write(path: Path, run: Path, drop: int = 0) -> list[float]:
    """A file in which the accuracy of each subnet is 50% and its place."""
    subnets = json.loads((run / "seed-3/result.json").read_text())["subnets"][drop:]
    accuracies = [0.5 + place / 100 for place in range(len(subnets))]
    if path.suffix == ".json":
        rows = [
            {"architecture": s["architecture"], "accuracy": a}
            for s, a in zip(subnets, accuracies, strict=True)
        ]
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*subnets[0]["architecture"], "top1"])
            writer.writeheader()
            writer.writerows(
                s["architecture"] | {"top1": 100 * a}
                for s, a in zip(subnets, accuracies, strict=True)
            )
    return accuracies


@pytest.mark.parametrize("name", ["table.json", "table.csv"])
def test_accuracies_from_a_file(name, runs, tmp_path):
    accuracies = write(tmp_path / name, runs / "tiny", drop=2)
    column = "accuracy" if name.endswith("json") else "top1"
    if name.endswith("csv"):  # a row that says the same again is no contradiction
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join([*lines, lines[-1]]))
    options = {"standalone": tmp_path / name, "standalone_column": column}
    page = page_of([runs / "tiny"], tmp_path, **options)
    rows = {row[0]: row[1:] for row in page.tables["Diagnostics over 10 subnets"][1:]}
    for seed in (3, 5):
        result = json.loads((runs / f"tiny/seed-{seed}/result.json").read_text())
        losses = [-subnet["loss"] for subnet in result["subnets"][2:]]
        tau = number(kendalltau(losses, accuracies)[0])
        assert rows[f"tiny, seed {seed}"][0].startswith(f"{tau} ")
    assert "the best subnet reaches 59.0%" in page.words
    assert any("stand-alone" in cell for cell in page.tables["Pareto set of tiny"][0])


@pytest.mark.parametrize("name", ["standalone-*.jsonl", "tiny-compare/compare.json"])
def test_what_a_comparison_keeps_is_such_a_file(name, compared, runs, pages, tmp_path):
    (kept,) = compared.folder.parent.glob(name)
    given = page_of([runs / "still", runs / "tiny"], tmp_path, standalone=kept)
    rows = given.tables["Diagnostics over 12 subnets"]
    for row, other in zip(rows, pages["both"].tables["Diagnostics over 12 subnets"], strict=True):
        assert row[1:] == other[1:]
    table = given.tables["still and tiny"]
    assert [row[1:] for row in table[1:]] == [
        row[1:] for row in pages["both"].tables["static and dynamic"][1:]
    ]


def test_a_file_takes_the_place_of_what_a_comparison_came_with(runs, tmp_path):
    write(tmp_path / "table.json", runs / "tiny", drop=6)
    page = page_of([runs / "both"], tmp_path, standalone=tmp_path / "table.json")
    assert "Diagnostics over 6 subnets" in page.tables
    assert "The 6 subnets reach 50.0% to 55.0% when they are trained alone, the" in page.words


def test_a_file_that_does_not_fit(runs, tmp_path, capsys):
    def refused(path: Path, *options: str) -> str:
        output = str(tmp_path / "page.html")
        command = ["report", str(runs / "tiny"), "--output", output, "--standalone", str(path)]
        assert main([*command, *options]) == 1
        return capsys.readouterr().err

    write(tmp_path / "table.csv", runs / "tiny")
    message = refused(tmp_path / "table.csv")
    assert "no column ['accuracy']" in message
    assert "--standalone-column" in message
    labels = json.loads((runs / "tiny/seed-3/result.json").read_text())["pick"]["architecture"]
    other = [{"architecture": dict.fromkeys(labels, "conv_7x7"), "accuracy": 0.5}]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    assert "none of the 12 subnets of tiny is in it" in refused(path)
    path.write_text('[{"architecture": {"layer": "conv"}, "accuracy": 0.5}]')
    assert "no column ['cell/0_1', " in refused(path)
    for content in ('{"a": 1}', "[1]"):
        path.write_text(content)
        assert "must be a list of" in refused(path)
    path.write_text("[")
    assert "is damaged, it is not valid JSON" in refused(path)
    path.write_text(json.dumps([other[0] | {"accuracy": "?"}]))
    assert "row 1 of 1: '?' in column 'accuracy' is no number" in refused(path)
    path.write_text(json.dumps([*other, {"architecture": {}}]))
    assert "row 2 of 2: None in column 'accuracy' is no number" in refused(path)
    assert "is no file" in refused(tmp_path / "nowhere.csv")
    write(tmp_path / "twice.json", runs / "tiny")
    rows = json.loads((tmp_path / "twice.json").read_text())
    (tmp_path / "twice.json").write_text(json.dumps([*rows, rows[0] | {"accuracy": 0.25}]))
    assert "has the values 0.5 and 0.25; average them" in refused(tmp_path / "twice.json")
    write(tmp_path / "twice.csv", runs / "tiny")
    first = (tmp_path / "twice.csv").read_text().splitlines()[1]
    with (tmp_path / "twice.csv").open("a") as file:
        file.write(first.rpartition(",")[0] + ",25\n")
    message = refused(tmp_path / "twice.csv", "--standalone-column", "top1")
    assert "has the values 50.0 and 25.0; average them" in message
    assert not (tmp_path / "page.html").exists()


def test_a_file_beside_a_run_that_has_no_subnets_yet(a_run, tmp_path):
    folders = [a_run("one", [0.5, 0.6, 0.7]), a_run("two", [])]
    (tmp_path / "table.csv").write_text("layer,accuracy\nk0,0.7\nk1,0.8\nk2,0.9\n")
    page = page_of(folders, tmp_path, standalone=tmp_path / "table.csv")
    assert "Diagnostics over 3 subnets" in page.tables


def test_a_file_that_was_cut_off_is_named(a_run, tmp_path):
    (tmp_path / "table.csv").write_text("layer,accuracy\nk0,0.7\nk1\n", encoding="utf-8-sig")
    with pytest.raises(RunError, match=r"table.csv: row 2 of 2: '' in column 'accuracy' is no"):
        page_of([a_run("one", [0.5, 0.6])], tmp_path, standalone=tmp_path / "table.csv")


def test_the_accuracy_of_a_single_subnet_is_too_little(a_run, tmp_path):
    (tmp_path / "table.csv").write_text("layer,accuracy\nk0,0.7\n")
    folder = a_run("one", [0.5, 0.6])
    page = page_of([folder], tmp_path, standalone=tmp_path / "table.csv")
    assert "for too few subnets were trained alone" in page.words
    assert "for no subnet was trained alone" in page_of([folder], tmp_path).words
