"""A small comparison, trained once, which the tests of the command line and of reports share."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

CONFIG = {
    "name": "tiny",
    "space": {
        "name": "NasBench201",
        "kwargs": {"stem_out_channels": 2, "num_modules_per_stack": 1},
    },
    # Nothing reads the root of digits; a page must show it as text.
    "data": {"name": "digits", "validation": 0.4, "test": 0.8, "root": "<script>alert(1)</script>"},
    "optimizer": {"kwargs": {"lr": 0.05, "momentum": 0.9}},
    "dynamic": {"momentum": True},  # what a report says of groups
    "scoring": {"calibration_batches": 2},
    "epochs": 4,
    "batch_size": 27,
    "device": "cpu",
}


@dataclass(frozen=True)
class Compared:
    """A finished comparison of two seeds. Copy its folder to change it.

    Attributes:
        folder: of the comparison; static and dynamic in it are folders of runs.
        arguments: that `main` was given.
        printed: what it printed.
    """

    folder: Path
    arguments: list[str]
    printed: str


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    pytest.importorskip("nni")
    pytest.importorskip("sklearn")
    from nas_dynamic.experiment.cli import main

    out = tmp_path_factory.mktemp("compared")
    (out / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    arguments = ["compare", str(out / "config.yaml"), "--out", str(out), "--seed", "3", "5"]
    arguments += ["--subnets", "12", "--standalone-epochs", "2"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(arguments) == 0
    return Compared(out / "tiny-compare", arguments, printed.getvalue())
