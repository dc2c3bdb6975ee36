"""The example from a space to a network: what it tells follows from the files that it leaves."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

pytest.importorskip("nni")
pytest.importorskip("sklearn")
pytest.importorskip("pymoo")

from nas_dynamic.search import Evaluation, SearchResult

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("search digits")]

EXAMPLE = Path(__file__).parents[2] / "examples" / "search_digits.py"
SIZES = {
    "epochs": 2,
    "budget": 9,
    "retrain": 3,
    "subnets": 4,
    "standalone-epochs": 2,
    "trainings": 2,
    "seed": 1,
}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("search_digits", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(example, folder: Path) -> list[str]:
    """Run the example, and return what it prints but for its progress."""
    arguments = [text for name, value in SIZES.items() for text in (f"--{name}", str(value))]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["search_digits.py", "--out", str(folder), *arguments])
        example.main()
    return [line for line in printed.getvalue().splitlines() if line.startswith(("seed", "In the"))]


@pytest.fixture(scope="module")
def first(example, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of a run, and what it told."""
    folder = tmp_path_factory.mktemp("search_digits")
    return folder, run(example, folder)


def test_what_it_tells_is_in_its_files(first):
    folder, (agreement, variety, told, count) = first

    measured = {}  # (images, seed) → architecture → accuracy on test, loss on validation images
    for path in folder.glob("standalone-*.jsonl"):
        settings, *scores = map(json.loads, path.read_text().splitlines())
        measure = {"test": "accuracy", "validation": "loss"}[settings["on"]]
        measured[settings["on"], settings["seed"]] = {
            json.dumps(line["architecture"], sort_keys=True): line[measure] for line in scores
        }
    assert measured.keys() == set(itertools.product(["test", "validation"], [0, 1]))
    of_test, of_validation = (
        {key: np.mean([measured[on, 0][key], measured[on, 1][key]]) for key in measured[on, 0]}
        for on in ("test", "validation")
    )
    (journal,) = folder.glob("seed-1/search-*.jsonl")
    searched = [json.loads(line) for line in journal.read_text().splitlines()]
    scores = [entry["scores"] for entry in searched if "scores" in entry]
    assert len(scores) == SIZES["budget"]
    losses = {score["loss"]: score["accuracy"] for score in scores}  # equal: one network
    assert variety == f"seed 1: {len(losses)} distinct networks of 9 scored"
    assert len(of_validation) == SIZES["retrain"]

    found = re.search(r"found (.*), [\d.]+% with", told)[1]
    choices = dict(zip(searched[0]["space"], found.split(), strict=True))
    best = json.dumps(choices, sort_keys=True)
    assert of_validation[best] == min(of_validation.values())
    inherited = float(re.search(r"([\d.]+)% with inherited weights", told)[1])
    assert inherited >= 100 * sorted(losses.values())[-SIZES["retrain"]] - 0.05
    sample = list(of_test)[: SIZES["subnets"]]
    better = sum(of_test[key] > of_test[best] for key in sample)
    assert f"alone {of_test[best]:.1%}, {better} of 4 random subnets are better" in told
    assert count == f"In the top decile: {int(better == 0)} of 1 seeds"

    pair = [[measured["test", seed][key] for key in sample] for seed in (0, 1)]
    assert agreement.endswith(
        f"between two stand-alone trainings {kendalltau(*pair).statistic:.2f}"
    )


def test_finalists_are_distinct_networks(example):
    def evaluation(name, accuracy, loss, parameters):
        values = {"accuracy": accuracy, "loss": loss, "parameters": parameters}
        return Evaluation({"layer": name}, values, feasible=True)

    evaluations = [
        evaluation("large", 0.9, 0.3, 300),
        evaluation("small", 0.9, 0.3 + 1e-9, 100),  # the same network but for what has no effect
        evaluation("best", 0.9, 0.2, 200),
        evaluation("diverged", 0.9, math.nan, 50),
        evaluation("other", 0.8, 0.3, 100),
    ]
    found = example.distinct_networks(SearchResult([], evaluations))
    assert [e.architecture["layer"] for e in found] == ["best", "other", "small", "diverged"]


def test_a_finalist_that_diverged_is_not_taken(example, first, tmp_path):
    shutil.copytree(first[0], tmp_path / "again")
    taken = re.search(r"found .*, [\d.]+% with", first[1][2])[0]
    for path in (tmp_path / "again").glob("standalone-*.jsonl"):
        settings, *scores = map(json.loads, path.read_text().splitlines())
        if (settings["on"], settings["seed"]) == ("validation", 0):
            for line in scores:
                if f"found {' '.join(map(str, line['architecture'].values()))}," in taken:
                    line["loss"] = None
            path.write_text("".join(json.dumps(line) + "\n" for line in (settings, *scores)))
    told = run(example, tmp_path / "again")[2]
    assert re.search(r"found .*, [\d.]+% with", told)[0] != taken


def test_what_was_measured_is_kept(example, first, monkeypatch):
    monkeypatch.setattr("nas_dynamic.experiment.standalone.train_standalone", None)
    assert run(example, first[0]) == first[1]
