"""True accuracies of scored subnets, from a file: what a run's ranking is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_dynamic.analysis.architecture_table import read_rows
from nas_dynamic.report.run_folder import Key, Run, architecture_key, read_json
from nas_dynamic.storage.journal import RunError

__all__ = ["with_truth"]

Pairs = list[tuple[dict[str, Any], Any]]


def with_truth(runs: Sequence[Run], path: Path, column: str = "accuracy") -> list[Run]:
    """Runs with the true accuracies of a file, in place of those that they came with.

    A run that has no scored subnets yet is returned as it is.

    A JSON file: results.json of a demo, the stand-alone-*.json that it keeps, or a list of
    {"architecture": {label: candidate, …}, column: …}. A CSV or parquet file: one row an
    architecture, a column for each label. Values beyond 1 are taken for percent.

    Raises:
        RunError: the file is of another form, has several values for one architecture, or has
            none of the subnets of a run.
    """
    try:
        if path.suffix == ".json":
            pairs = _pairs(path, column)
            return [_matched(run, pairs, path) if run.subnets else run for run in runs]
        rows = read_rows(path)
        return [
            _matched(run, _of_columns(run, rows, path, column), path) if run.subnets else run
            for run in runs
        ]
    except (ValueError, FileNotFoundError) as error:
        raise RunError(f"--truth: {error}") from error


def _matched(run: Run, pairs: Pairs, path: Path) -> Run:
    known: dict[Key, float] = {}
    for architecture, text in pairs:
        key, value = architecture_key(architecture), _number(text, architecture, path)
        if known.setdefault(key, value) != value:
            raise ValueError(
                f"{path} has the values {known[key]} and {value} for {architecture}; average "
                "them, or choose one"
            )
    scale = 100 if max(known.values(), default=0) > 1 else 1
    truth = {key: known[key] / scale for key in run.keys if key in known}
    if not truth:
        raise ValueError(
            f"{path} has none of the {len(run.subnets)} subnets of {run.name}, whose first is "
            f"{run.subnets[0].architecture}"
        )
    return replace(run, truth=truth)


def _of_columns(run: Run, rows: list[dict[str, Any]], path: Path, column: str) -> Pairs:
    labels = list(run.subnets[0].architecture)
    missing = [name for name in [*labels, column] if name not in rows[0]]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(map(repr, missing))}, which {run.name} needs; its "
            f"columns are {', '.join(rows[0])} (--truth-column names that of the accuracies)"
        )
    return [({label: row[label] for label in labels}, row[column]) for row in rows]


def _pairs(path: Path, column: str) -> Pairs:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    content = read_json(path, "restore it from a copy")
    subnets = content.get("truth") if isinstance(content, dict) else content
    rows = subnets if isinstance(subnets, list) else [None]
    pairs: list[tuple[Any, Any]] = [
        (row.get("architecture"), row.get(column)) if isinstance(row, dict) else (None, None)
        for row in rows
    ]
    if not all(isinstance(architecture, dict) for architecture, _ in pairs):
        raise ValueError(
            f'{path} must be a list of {{"architecture": {{label: candidate, …}}, "{column}": …}}, '
            "or a file of nas-dynamic demo"
        )
    return pairs


def _number(value: Any, architecture: dict[str, Any], path: Path) -> float:
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
