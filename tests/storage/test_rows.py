"""Results of arms and seeds: made once each, whatever stopped the training before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas_dynamic.storage.journal import RunError
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

JOBS = [(arm, seed) for seed in range(2) for arm in ("spos", "tangle")]


def test_a_file_is_completed_after_a_stop_at_any_byte(tmp_path: Path, capsys: Any):
    made: list[tuple[str, int]] = []

    def make(arm: str, seed: int) -> dict[str, Any]:
        made.append((arm, seed))
        return {"found": f"{arm} – {seed}", "loss": float("nan") if seed else 0.5}

    path = tmp_path / "new" / "rows.jsonl"
    complete(path, JOBS, make)
    whole = path.read_bytes()
    assert made == JOBS
    assert capsys.readouterr().out.count("\n") == len(JOBS)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        done = read_rows(path)
        made.clear()
        complete(path, JOBS, make)
        assert made == JOBS[len(done) :]
        assert path.read_bytes() == whole
    rows = read_rows(path)
    assert [*rows] == JOBS
    assert rows["tangle", 1] == {
        "arm": "tangle", "seed": 1, "found": "tangle – 1", "loss": None, "seconds": 0,
    }  # fmt: skip


def test_rows_of_other_data_are_left_alone(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == {}
    for data in ("digits", "cora"):
        complete(path, JOBS, lambda arm, seed, data=data: {"of": [data]}, data=data)
    assert len(path.read_text().splitlines()) == 2 * len(JOBS)
    assert all(row["of"] == ["cora"] for row in read_rows(path, data="cora").values())


def test_a_row_that_fails_leaves_those_before_it(tmp_path: Path):
    def make(arm: str, seed: int) -> dict[str, Any]:
        if (arm, seed) == JOBS[2]:
            raise FloatingPointError("the loss is not finite")
        return {}

    with pytest.raises(FloatingPointError):
        complete(tmp_path / "rows.jsonl", JOBS, make)
    assert [*read_rows(tmp_path / "rows.jsonl")] == JOBS[:2]


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("arm,seed\nspos,0\n")
    with pytest.raises(RunError, match="does not hold a table of rows"):
        complete(path, JOBS, lambda arm, seed: {})
    assert path.read_text() == "arm,seed\nspos,0\n"


def test_common_seeds_are_those_of_every_arm():
    rows = dict.fromkeys([("spos", 2), ("spos", 0), ("tangle", 0), ("tangle", 1)])
    assert common_seeds(rows, ["spos", "tangle"]) == [0]
    assert common_seeds(rows, iter(["spos"])) == [0, 2]
    assert common_seeds(rows, ["alone"]) == []
