"""A disk that takes no more: told in a line, and nothing half-written is left on it.

A limit on the size of files stands for it: the system then refuses a write in its middle.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nas_dynamic.storage import checkpoint
from nas_dynamic.storage.journal import RunError, check_writable, command_text

pytestmark = pytest.mark.process
resource = pytest.importorskip("resource")

FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from nas_dynamic.storage import checkpoint, network
from nas_dynamic.storage.journal import Journal, RunError, check_writable, write_json

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder = Path(sys.argv[1])
weights = {"w": torch.zeros(10_000)}
def journal():
    with Journal(folder / "a.jsonl", {}, "scoring") as lines:
        lines.append({"text": "x" * 30_000})
for write in (
    lambda: checkpoint.save(folder / "last.ckpt", weights),
    lambda: write_json(folder / "a.json", list(range(10_000))),
    journal,
    lambda: network.save_network(torch.nn.Linear(100, 100), folder, torch.rand(3, 100), {}),
    lambda: check_writable(folder),
):
    try:
        write()
    except RunError as error:
        print(error)
    else:
        print("no error")
"""


def test_nothing_half_written_stays_on_a_full_disk(tmp_path):
    checkpoint.save(tmp_path / "last.ckpt", {"w": torch.ones(3)})
    (tmp_path / "a.json").write_text("[]")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 5, result.stdout + result.stderr
    for line, verb in zip(lines, [*["write"] * 4, "write into"], strict=True):
        assert line.startswith(f"cannot {verb} {tmp_path}")
        assert "File too large" in line
        assert "MiB are free" in line
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.pop("a.jsonl").startswith(b"{}\n")  # what is cut off is dropped at the next start
    assert after == before
    assert torch.equal(checkpoint.load(tmp_path / "last.ckpt")["w"], torch.ones(3))


def test_a_folder_that_can_be_written_is_not_made_by_the_check(tmp_path):
    check_writable(tmp_path / "a/b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write into \S+/file/b: \S+/file is a file"):
        check_writable(tmp_path / "file/b")


def test_commands_can_be_pasted():
    assert command_text("nas-dynamic", "report", "my runs/a") == "nas-dynamic report 'my runs/a'"
