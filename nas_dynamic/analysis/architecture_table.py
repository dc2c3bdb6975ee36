"""Tables of architectures, such as their stand-alone accuracies, measured here or by others."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_dynamic._extras import extra
from nas_dynamic.space import Architecture, Key, SearchSpace, candidate_from_json, key
from nas_dynamic.storage.journal import read_json

__all__ = ["ArchitectureTable", "read_rows"]


class ArchitectureTable:
    """A value for each of some architectures of a space.

    Args:
        space: the architectures.
        values: pairs of an architecture and its value.

    Raises:
        ValueError: an architecture is not of the space, has two values, or one that is not finite.

    Example:
        >>> space = SearchSpace({"layer1": ["conv3", "conv5"], "depth": [2, 3]})
        >>> table = ArchitectureTable(space, [({"layer1": "conv5", "depth": 3}, 93.5)])
        >>> table({"depth": 3, "layer1": "conv5"})
        93.5
    """

    def __init__(self, space: SearchSpace, values: Iterable[tuple[Architecture, float]]) -> None:
        self.space = space
        self._values: dict[Key, float] = {}
        for architecture, value in values:
            self._add(architecture, value)

    @classmethod
    def read(
        cls,
        path: str | Path,
        space: SearchSpace,
        value: str,
        parse: Callable[[Mapping[str, Any]], Architecture] | None = None,
    ) -> ArchitectureTable:
        """Read a file with one row an architecture.

        Args:
            path: of the file: see `read_rows`.
            space: the architectures.
            value: column of the values.
            parse: row → architecture. By default every label of the space is a column that holds
                candidates, as text.

        Raises:
            ValueError: a column is missing, or a row is of no architecture of the space, has no
                value or contradicts an earlier one; the message has its number, from 1.
        """
        rows = read_rows(path)
        try:
            return cls.of_rows(rows, space, value, parse)
        except ValueError as error:
            raise ValueError(f"{path}, {error}") from error

    @classmethod
    def of_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        space: SearchSpace,
        value: str,
        parse: Callable[[Mapping[str, Any]], Architecture] | None = None,
    ) -> ArchitectureTable:
        """Return the table of rows, as `read` does of those in a file."""
        wanted = {value} | (set() if parse else set(space.labels))
        missing = wanted - set(rows[0])
        if missing:
            raise ValueError(f"no column {sorted(missing)}; the columns are {list(rows[0])}")
        table = cls(space, ())
        for number, row in enumerate(rows, 1):
            try:
                architecture = parse(row) if parse else _named(space, row)
                table._add(architecture, _number(row.get(value), value))
            except ValueError as error:
                raise ValueError(f"row {number} of {len(rows)}: {error}") from error
        return table

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, architecture: Architecture) -> bool:
        return self._key(architecture) in self._values

    def __call__(self, architecture: Architecture) -> float:
        """Look a value up.

        Raises:
            ValueError: the table has no such architecture.
        """
        try:
            return self._values[self._key(architecture)]
        except KeyError:
            raise ValueError(
                f"the table of {len(self)} architectures has none with {dict(architecture)}"
            ) from None

    def _add(self, architecture: Architecture, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(
                f"{dict(architecture)} has the value {value}; drop what was not measured"
            )
        known = self._values.setdefault(self._key(architecture), float(value))
        if known != value:
            raise ValueError(
                f"{dict(architecture)} has the values {known} and {value}; average them, or "
                "choose one"
            )

    def _key(self, architecture: Architecture) -> Key:
        self.space.validate(architecture)
        return key(architecture)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a table: column → value.

    A CSV (.csv, .csv.gz; values are text, and "" where a row was cut off), a parquet file, a JSON
    list (.json), or JSON lines (.jsonl). Rows of JSON that hold an architecture, such as
    `{"architecture": {label: candidate}, "accuracy": 0.9}`, have a column for each label. So the
    stand-alone scores that `nas-dynamic compare` keeps, and its compare.json, are tables as well.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, or has no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    rows: list[dict[str, Any]]
    if path.suffix == ".parquet":
        with extra("parquet"):
            import pandas
            import pyarrow  # noqa: F401, pandas names it as optional
        rows = pandas.read_parquet(path).to_dict("records")
    elif path.name.endswith((".csv", ".csv.gz")):
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", newline="", encoding="utf-8-sig"
        ) as file:
            rows = list(csv.DictReader(file, restval=""))
    elif path.suffix in (".json", ".jsonl"):
        rows = _json_rows(path)
    else:
        raise ValueError(f"{path}: a table is a .csv, .csv.gz, .parquet, .json or .jsonl file")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    content: Any
    if path.suffix == ".jsonl":
        content = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # A journal begins with its definition.
        content = [row for row in content if "architecture" in row] or content
    else:
        content = read_json(path, "restore it from a copy")
        content = content.get("standalone") if isinstance(content, dict) else content
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(
            f'{path} must be a list of {{"architecture": {{label: candidate, …}}, "accuracy": …}}'
        )
    return [
        {
            column: candidate_from_json(value)
            for column, value in (row | row.get("architecture", {})).items()
            if column != "architecture"
        }
        for row in content
    ]


def _number(value: Any, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} in column {column!r} is no number") from None


def _named(space: SearchSpace, row: Mapping[str, Any]) -> Architecture:
    """Return the architecture whose candidates read as in a row."""
    architecture = {}
    for label, candidates in space.choices.items():
        matching = [c for c in candidates if str(c) == str(row.get(label))]
        if len(matching) != 1:
            raise ValueError(
                f"{row.get(label)!r} in column {label!r} is no candidate; they are "
                f"{[str(candidate) for candidate in candidates]}"
            )
        architecture[label] = matching[0]
    return architecture
