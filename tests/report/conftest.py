from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.report.page import Page, page_of
from tests.trained_run import Compared


@pytest.fixture(scope="session")
def runs(compared: Compared, tmp_path_factory) -> Path:
    """A folder with a comparison, and with its arms as two runs by themselves."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(compared.folder, folder / "both")
    shutil.copytree(compared.folder / "dynamic", folder / "tiny")
    shutil.copytree(compared.folder / "static", folder / "still")
    return folder


@pytest.fixture(scope="session")
def pages(runs: Path, tmp_path_factory) -> dict[str, Page]:
    """The pages of one run, of a comparison, and of two runs side by side."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        names: page_of(
            [runs / name for name in names.split()], folder, output=folder / f"{names}.html"
        )
        for names in ("tiny", "both", "still tiny")
    }


@pytest.fixture
def tiny(runs: Path, tmp_path: Path) -> Path:
    """A copy of the dynamic run, to damage."""
    return Path(shutil.copytree(runs / "tiny", tmp_path / "tiny"))


@pytest.fixture
def a_run(tmp_path: Path):
    """Makes a run of one seed with a subnet for each accuracy; of no seed without any."""

    def a_run(name: str, accuracies: list[float], **recorded) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"name": name, "seeds": [0]}))
        (folder / "environment.json").write_text("{}")
        subnets = [
            {
                "architecture": {"layer": f"k{n}"},
                "parameters": n + 1,
                "accuracy": accuracy,
                "loss": 1 - accuracy,
            }
            for n, accuracy in enumerate(accuracies)
        ]
        result = {
            "seed": 0,
            "subnets": subnets,
            "validation_images": 100,
            "group_by": None,
            "cost": {"seconds": 1.0},
            "updates": 8,
            "updates_by_group": {},
            "trace": [
                {"step": n, "lr": 0.1, "parameters": n % 4 + 1, "loss": 1.0} for n in range(8)
            ],
            "pairs": [],
        }
        if subnets:
            (folder / "seed-0").mkdir()
            (folder / "seed-0/result.json").write_text(json.dumps(result | recorded))
        return folder

    return a_run
