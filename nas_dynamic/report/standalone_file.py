"""Stand-alone accuracies of scored subnets, from a file: what a run's ranking is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_dynamic.analysis.architecture_table import ArchitectureTable, read_rows
from nas_dynamic.report.run_folder import Run
from nas_dynamic.space import SearchSpace, key
from nas_dynamic.storage.journal import RunError

__all__ = ["with_standalone"]


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
        return [_matched(run, rows, column) if run.subnets else run for run in runs]
    except (ValueError, FileNotFoundError) as error:
        raise RunError(
            f"--standalone {path}: {error} (--standalone-column names the column of the accuracies)"
        ) from error


def _matched(run: Run, rows: Sequence[Mapping[str, Any]], column: str) -> Run:
    labels = list(run.subnets[0].architecture)
    missing = [label for label in labels if label not in rows[0]]
    if missing:
        raise ValueError(f"no column {missing}, which {run.name} needs; there are {list(rows[0])}")

    def text(row: Mapping[str, Any]) -> dict[str, str]:
        """Return what rows and subnets have in common: a CSV has text alone."""
        return {label: str(row.get(label)) for label in labels}

    texts = [text(row) for row in (*rows, *(subnet.architecture for subnet in run.subnets))]
    space = SearchSpace({label: sorted({row[label] for row in texts}) for label in labels})
    table = ArchitectureTable.of_rows(rows, space, column, text)
    known = {
        key(subnet.architecture): table(text(subnet.architecture))
        for subnet in run.subnets
        if text(subnet.architecture) in table
    }
    if not known:
        raise ValueError(f"none of the {len(run.subnets)} subnets of {run.name} is in it")
    scale = 100 if max(known.values()) > 1 else 1
    standalone = {architecture: value / scale for architecture, value in known.items()}
    return replace(run, standalone=standalone, comparison=None)
