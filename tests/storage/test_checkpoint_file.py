"""Checkpoint files: whole after a stop at any point, and their damage is noticed."""

from __future__ import annotations

import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_dynamic.storage import checkpoint
from tests.attach.reference import assert_identical

CONTENT = {
    "weights": torch.linspace(0, 1, 50),
    "log": [1, 2.5, "x", None, (1, 2)],
    "state": {"step": torch.ones(3, dtype=torch.int64)},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "last.pt"


def test_save_keeps_the_one_before(path: Path):
    checkpoint.save(path, {"number": 1})
    checkpoint.save(path, {"number": 2})
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.pt", "last.pt.previous"]
    assert checkpoint.load(path) == {"number": 2}
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"last\.pt .*cut off.*went back to .*previous"):
        assert checkpoint.load(path) == {"number": 1}
    checkpoint.save(path, {"number": 3})
    assert checkpoint.load(path) == {"number": 3}
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="went back to"):
        assert checkpoint.load(path) == {"number": 1}, "the damaged one was kept for the good one"


def test_a_missing_checkpoint_is_told(path: Path):
    for number in (1, 2):
        checkpoint.save(path, {"number": number})
    path.unlink()
    with pytest.warns(UserWarning, match=r"last\.pt is missing; went back to .*previous"):
        assert checkpoint.load(path) == {"number": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        assert checkpoint.load(path) == {"number": 1}
    checkpoint.save(path, {"number": 3})
    assert checkpoint.load(path) == {"number": 3}
    path.unlink()
    before = path.with_name("last.pt.previous")
    before.write_bytes(before.read_bytes()[:-100])
    with pytest.raises(
        checkpoint.CheckpointError, match=r"last\.pt is missing; .*previous .*cut off"
    ):
        checkpoint.load(path)


def test_save_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any) -> None:
        raise PermissionError("this file system has no hard links")

    monkeypatch.setattr("os.link", refuse)
    for number in range(3):
        checkpoint.save(path, {"number": number})
    assert checkpoint.load(path) == {"number": 2}
    path.unlink()
    assert checkpoint.exists(path)
    assert checkpoint.load(path) == {"number": 1}


def test_a_failing_save_leaves_the_old_file(path: Path):
    checkpoint.save(path, {"number": 1})
    with pytest.raises(AttributeError, match=r"pickle|local object"):
        checkpoint.save(path, {"number": lambda: 2})
    assert checkpoint.load(path) == {"number": 1}
    checkpoint.save(path, {"number": 3})
    assert checkpoint.load(path) == {"number": 3}


def test_no_damaged_bit_is_taken_for_the_checkpoint(path: Path):
    """torch.load by itself takes some, with other numbers."""
    checkpoint.save(path, CONTENT)
    sound = path.read_bytes()
    generator = random.Random(0)
    refused = taken_by_torch = 0
    for position in range(0, len(sound), 3):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            content = checkpoint.verify(path)
        except checkpoint.CheckpointError:
            refused += 1
            taken_by_torch += differs_unnoticed(path)
        else:
            assert_identical(content, CONTENT)  # padding, or a copy of what stands elsewhere
    assert refused > len(sound) / 3 / 3
    assert taken_by_torch > 0


def differs_unnoticed(path: Path) -> bool:
    try:
        weights = torch.load(path, weights_only=True)["weights"]
    except Exception:
        return False
    return not torch.equal(weights, CONTENT["weights"])


def test_no_truncated_file_is_taken(path: Path):
    checkpoint.save(path, CONTENT)
    sound = path.read_bytes()
    for size in range(0, len(sound), 7):
        path.write_bytes(sound[:size])
        with pytest.raises(checkpoint.CheckpointError, match=f"{size:,} bytes|cannot be read"):
            checkpoint.load(path)


class Command:
    def __reduce__(self) -> Any:
        return (print, ("run by the load",))


def test_foreign_files_are_refused_and_run_nothing(path: Path, capsys: pytest.CaptureFixture[str]):
    path.parent.mkdir()
    path.write_text('{"epoch": 3}')
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of torch"):
        checkpoint.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing to see")
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.load(path)
    torch.save({"epoch": Command()}, path)
    with pytest.raises(checkpoint.CheckpointError, match="more than tensors and plain data"):
        checkpoint.load(path)
    assert capsys.readouterr().out == ""


def test_no_checkpoint(path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load(path)
