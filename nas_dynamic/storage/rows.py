"""Results of arms and seeds: a JSON line each, in a file that a stop at any point leaves whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from nas_dynamic.storage.journal import Journal

__all__ = ["Rows", "common_seeds", "complete", "read_rows"]

Rows = dict[tuple[str, int], dict[str, Any]]
"""Rows by (arm, seed)."""


def complete(
    path: Path,
    jobs: Iterable[tuple[str, int]],
    make: Callable[[str, int], Mapping[str, Any]],
    **common: Any,
) -> None:
    """Make the rows that a file lacks, and append and print each once it is made.

    Args:
        path: of the file, of one writer at a time.
        jobs: (arm, seed) of every row that there is to be, in the order to make them.
        make: (arm, seed) → what the row has beside those and "seconds", of the processor.
        common: what all these rows have, and others of the file may have not.

    Raises:
        RunError: the file has other lines than of JSON, or cannot be written.
    """
    with Journal(path, None, "table of rows") as journal:
        done = _by_job(journal.lines, common)
        for arm, seed in jobs:
            if (arm, seed) in done:
                continue
            started = time.process_time()
            row = {**common, "arm": arm, "seed": seed, **make(arm, seed)}
            row["seconds"] = round(time.process_time() - started)
            journal.append(row)
            print(row, flush=True)


def read_rows(path: Path, **common: Any) -> Rows:
    """Return the rows of a file that have these entries; none if there is no such file."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]  # without a line that was cut off
    return _by_job(map(json.loads, whole.splitlines()), common)


def _by_job(rows: Iterable[dict[str, Any]], common: Mapping[str, Any]) -> Rows:
    return {(row["arm"], row["seed"]): row for row in rows if common.items() <= row.items()}


def common_seeds(rows: Collection[tuple[str, int]], arms: Iterable[str]) -> list[int]:
    """Return the seeds that each of these arms has a row of.

    Example:
        >>> common_seeds([("spos", 0), ("spos", 1), ("tangle", 1)], ["spos", "tangle"])
        [1]
    """
    wanted = [*arms]
    return sorted({seed for _, seed in rows if all((arm, seed) in rows for arm in wanted)})
