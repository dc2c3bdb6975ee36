"""Stand-alone accuracies of scored subnets, from a file: what a run's ranking is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_dynamic.analysis.architecture_table import read_rows
from nas_dynamic.report.run_folder import Run
from nas_dynamic.space import Architecture, Key, key
from nas_dynamic.storage.journal import RunError

__all__ = ["with_standalone"]

Text = frozenset[tuple[str, str]]


def with_standalone(runs: Sequence[Run], path: Path, column: str = "accuracy") -> list[Run]:
    """Return the runs with the stand-alone accuracies of a file, in place of those they came with.

    A run that has no scored subnets yet is returned as it is.

    Args:
        runs: the runs.
        path: of a table with a row an architecture: see `read_rows`. Values beyond 1 are taken
            for percent.
        column: of the accuracies.

    Raises:
        RunError: the file is of another form, has several values for one architecture, or has
            none of the subnets of a run.
    """
    try:
        rows = read_rows(path)
        return [_matched(run, rows, path, column) if run.subnets else run for run in runs]
    except (ValueError, FileNotFoundError) as error:
        raise RunError(f"--standalone: {error}") from error


def _matched(run: Run, rows: list[dict[str, Any]], path: Path, column: str) -> Run:
    first = run.subnets[0].architecture
    missing = [name for name in [*first, column] if name not in rows[0]]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(map(repr, missing))}, which {run.name} needs; its "
            f"columns are {', '.join(rows[0])} (--standalone-column names that of the accuracies)"
        )
    known: dict[Text, float] = {}
    for row in rows:
        architecture = {label: row.get(label) for label in first}
        value = _number(row.get(column), architecture, path)
        if known.setdefault(_text(architecture), value) != value:
            raise ValueError(
                f"{path} has the values {known[_text(architecture)]} and {value} for "
                f"{architecture}; average them, or choose one"
            )
    scale = 100 if max(known.values()) > 1 else 1
    standalone: dict[Key, float] = {
        key(subnet.architecture): known[_text(subnet.architecture)] / scale
        for subnet in run.subnets
        if _text(subnet.architecture) in known
    }
    if not standalone:
        raise ValueError(
            f"{path} has none of the {len(run.subnets)} subnets of {run.name}, whose first is "
            f"{first}"
        )
    return replace(run, standalone=standalone, comparison=None)


def _text(architecture: Architecture) -> Text:
    """Return what two descriptions of one architecture have in common: a CSV has text alone."""
    return frozenset((label, str(candidate)) for label, candidate in architecture.items())


def _number(value: Any, architecture: Architecture, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{path} has the accuracy {value!r}, which is no finite number, for {architecture}; "
            "drop that row"
        )
    return number
