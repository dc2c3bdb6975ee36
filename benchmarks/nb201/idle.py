"""What it does to let idle parameters coast, in place of freezing them as torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.nb201.report import MEASURES, SETTING, Rows, read_results
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.analysis.text_table import text_table

__all__ = ["idle_differences", "print_idle"]


def idle_differences(rows: Rows, measure: str) -> dict[tuple[str, ...], np.ndarray]:
    """Return coasting less freezing: (arm, edge, setting …) → one difference a common seed."""
    found: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    for row in rows:
        arm = (row["arm"], row["edge"], row["scored"], *(row[name] for name in SETTING))
        by_idle = found.setdefault(arm, {"coast": {}, "freeze": {}})
        if row["idle"] in by_idle:
            by_idle[row["idle"]][row["seed"]] = float(row[measure])
    return {
        arm: np.array([coast - freeze[seed] for seed, coast in by_seed.items() if seed in freeze])
        for arm, (by_seed, freeze) in ((arm, tuple(of.values())) for arm, of in found.items())
        if by_seed.keys() & freeze.keys()
    }


def print_idle(path: Path) -> None:
    """Print coasting less freezing, of each arm that was run with both."""
    rows = read_results(path)
    header = ["arm", "edge", "updates", "pairs", *MEASURES.values()]
    by_measure = [idle_differences(rows, measure) for measure in MEASURES]
    updates = SETTING.index("updates")
    cells = []
    for arm, first in by_measure[0].items():
        estimates = [f"{mean_estimate(of[arm]):+.3f}" for of in by_measure]
        cells.append([arm[0], arm[1], arm[3 + updates], str(len(first)), *estimates])
    print(text_table(header, cells, frozenset([0, 1])))
