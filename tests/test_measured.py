"""The measured differences that the package carries are those of the results in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.nb201.measured import MEASURED, measured_differences
from benchmarks.nb201.report import read_results

ROOT = Path(__file__).parents[1]


def test_the_package_carries_what_the_results_say():
    carried = json.loads((ROOT / MEASURED).read_text())["differences"]
    names = ("nb201.csv", "nb201_replicas.csv")
    rows = [row for name in names for row in read_results(ROOT / "benchmarks/results" / name)]
    assert carried == measured_differences(rows), "python -m benchmarks.nb201 measured"
    assert len(carried) == 25


def test_they_are_those_of_the_page_of_results():
    page = (ROOT / "docs/results.md").read_text()
    carried = json.loads((ROOT / MEASURED).read_text())["differences"]
    (of_20_000,) = (
        row
        for row in carried
        if (row["training"], row["updates"], row["size"])
        == ("the defaults", 20_000, "reduced, coasting")
        and "cosine" in row["against"]
    )
    lines = re.findall(r"^\| CaLR by rank, the default +\| 20,000 +\| 5 .*$", page, re.MULTILINE)
    value, low, high = (
        f"{end:+.3f}".replace("0.", ".").replace("-", "−") for end in of_20_000["tau_loss"]
    )
    assert [f"{value} [{low}, {high}]" in line for line in lines] == [True]


def test_readme_has_them_as_they_are():
    readme = (ROOT / "README.md").read_text()
    carried = json.loads((ROOT / MEASURED).read_text())["differences"]
    rows = re.findall(
        r"^\| (the paper's|reduced.*?) +\| (\w+) +\| ([\d,]+) +\| (\d+) +\| (.*?) +\| (.*?) +\|$",
        readme,
        re.MULTILINE,
    )
    assert len(rows) == sum(row["training"] == "the defaults" for row in carried)
    for size, curve, updates, pairs, tau, accuracy in rows:
        (row,) = (
            row
            for row in carried
            if (row["training"], row["size"]) == ("the defaults", size)
            and row["updates"] == int(updates.replace(",", ""))
            and row["against"] == f"static training, {curve} decay"
        )
        assert row["pairs"] == int(pairs)
        for cell, measure, unit in ((tau, "tau_loss", 1), (accuracy, "mean_accuracy", 100)):
            found = [float(n) for n in re.findall(r"[+-]?\d*\.\d+", cell.replace("−", "-"))]
            digits = 3 if unit == 1 else 1
            assert found == [round(unit * end, digits) for end in row[measure]]
