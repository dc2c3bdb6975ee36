"""Files that only grow, and JSON that is there in full or not at all."""

from __future__ import annotations

import json
import math

import pytest

from nas_dynamic.storage.journal import Journal, RunError, read_json, write_json


def lines(path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_journal_has_every_line_that_was_appended(tmp_path):
    path = tmp_path / "new/search.jsonl"
    with Journal(path, {"seed": 1, "shape": (2, 3)}, "search") as journal:
        assert journal.lines == []
        journal.append({"loss": math.nan, "name": "γ"})
    with Journal(path, {"seed": 1, "shape": [2, 3]}, "search") as journal:
        assert journal.lines == [{"loss": None, "name": "γ"}]
        journal.append({"loss": 1})
    assert lines(path) == [{"seed": 1, "shape": [2, 3]}, {"loss": None, "name": "γ"}, {"loss": 1}]


@pytest.mark.parametrize("kept", range(1, 3))
def test_a_line_that_was_cut_off_is_dropped_and_no_other_one(tmp_path, kept):
    path = tmp_path / "search.jsonl"
    with Journal(path, {"seed": 1}, "search") as journal:
        for number in range(3):
            journal.append({"number": number})
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for size in range(ends[kept], ends[kept + 1]):
        path.write_bytes(content[:size])
        with Journal(path, {"seed": 1}, "search") as journal:
            assert [line["number"] for line in journal.lines] == list(range(kept))
            journal.append({"number": 9})
        assert lines(path)[1:] == [*({"number": n} for n in range(kept)), {"number": 9}]


def test_a_journal_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_text('{"seed": 2}\nhalf')
    with pytest.raises(RunError, match=r"holds another search: seed was 2, is 1\. Choose another"):
        Journal(path, {"seed": 1}, "search")
    assert path.read_text() == '{"seed": 2}\nhalf'


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"loss": math.inf})
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})
    assert read_json(path, "") == {"loss": None}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_told_with_the_remedy(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"result.json is damaged, .*; restore it"):
        read_json(path, "restore it")
    with pytest.raises(RunError, match=r"cannot read .*nowhere.json"):
        read_json(tmp_path / "nowhere.json", "restore it")
