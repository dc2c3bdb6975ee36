"""Configurations that tests train, small enough for seconds."""

from __future__ import annotations

from pathlib import Path

import yaml

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

TINY = CONFIG | WITHOUT_SCHEDULER | {"epochs": 2}


def write(path: Path, base: dict = CONFIG, **changes) -> str:
    path.write_text(yaml.safe_dump(base | changes))
    return str(path)
