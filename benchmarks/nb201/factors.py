"""What the decay curve, γ by rank and MS each do: main effects and interactions of all eight."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.nb201.arms import ARMS, Arm
from benchmarks.nb201.report import DEFAULT_EDGE, MEASURES, SETTING, interval, read_results
from nas_dynamic.analysis.paired import Difference

__all__ = ["DESIGN", "FACTORS", "effects", "print_effects"]

FACTORS = ("linear decay", "γ by rank", "MS")
"""What an arm has or not: else cosine decay, γ = 1, one momentum."""


def _design() -> dict[tuple[bool, ...], str]:
    names = {}
    for levels in itertools.product((False, True), repeat=len(FACTORS)):
        linear, by_rank, separate = levels
        sought = Arm(
            "polynomial" if linear else "cosine", "rank" if by_rank else "one", separate=separate
        )
        names[levels] = next(name for name, arm in ARMS.items() if arm == sought)
    return names


DESIGN = _design()
"""Arm by the levels of the factors."""


def effects(values: dict[str, float]) -> dict[str, float]:
    """Return main effects and interactions of two, of a measure of each arm of the design.

    Half of the arms less the other half: those that have the factor; or, of two factors, those
    that have both or neither.
    """
    found = {}
    for size in (1, 2):
        for chosen in itertools.combinations(range(len(FACTORS)), size):
            name = " × ".join(FACTORS[number] for number in chosen)
            signs = {
                arm: np.prod([1 if levels[number] else -1 for number in chosen])
                for levels, arm in DESIGN.items()
            }
            total = sum(sign * values[arm] for arm, sign in signs.items())
            found[name] = float(total) / (len(DESIGN) / 2)
    return found


def print_effects(path: Path) -> None:
    """Print the effects in every setting in which all arms were run, with their intervals.

    Raises:
        ValueError: there is no such setting.
    """
    settings: dict[tuple[str, ...], dict[str, dict[str, dict[str, str]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in read_results(path):
        if row["arm"] in DESIGN.values() and row["edge"] in ("", DEFAULT_EDGE):
            setting = tuple(row[key] for key in (*SETTING, "scored", "idle"))
            settings[setting][row["seed"]][row["arm"]] = row
    console = Console(width=120, highlight=False)
    printed = False
    for setting, by_seed in settings.items():
        whole = [rows for rows in by_seed.values() if rows.keys() == set(DESIGN.values())]
        if not whole:
            continue
        printed = True
        described = dict(zip((*SETTING, "scored", "idle"), setting, strict=True))
        console.print(
            f"\n{int(described['updates']):,} updates, C={described['channels']}, "
            f"{described['sampler']} sampling, {described['scored']} weights, idle parameters "
            f"{described['idle']}; {len(whole)} seeds of {len(DESIGN)} arms"
        )
        table = Table("", *(f"{title}, 95% t" for title in MEASURES.values()))
        of_seeds = {
            measure: [
                effects({arm: float(row[measure]) for arm, row in rows.items()}) for rows in whole
            ]
            for measure in MEASURES
        }
        for name in of_seeds["tau"][0]:
            cells = []
            for found in of_seeds.values():
                difference = Difference(np.array([of_seed[name] for of_seed in found]))
                ends = interval(difference.t_interval())
                cells.append(f"{difference.mean:+.3f}   {ends}")
            table.add_row(name, *cells)
        console.print(table)
    if not printed:
        raise ValueError(f"{path} has no setting with all of {', '.join(DESIGN.values())}")
