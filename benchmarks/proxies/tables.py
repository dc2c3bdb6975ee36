"""The published tables that the parts read, and the files that they keep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["FAILED", "RESULTS", "keep", "kept", "zero_cost"]

RESULTS = Path(__file__).parents[1] / "results" / "proxies.json"
FAILED = -1e8
"""What a score that could not be computed is in NAS-Bench-Suite-Zero."""


def zero_cost(path: Path) -> pd.DataFrame:
    """Read NAS-Bench-Suite-Zero: space, task, arch, val_accuracy and the published scores."""
    return pd.read_csv(path).replace(FAILED, math.nan)


def kept(path: Path) -> dict[str, Any]:
    """Return what the parts found, by part."""
    return json.loads(path.read_text()) if path.is_file() else {}


def keep(path: Path, part: str, found: Any) -> None:
    """Write what a part found; the other parts stay."""
    content = kept(path) | {part: found}
    path.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")
