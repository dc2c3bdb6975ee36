"""Killed trainings end as unbroken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak.kills import survive


@pytest.mark.host
@pytest.mark.process
@pytest.mark.parametrize(("loop", "kills"), [("plain", 4), ("timm", 2)])
def test_killed_training_ends_as_an_unbroken_one(loop: str, kills: int, tmp_path: Path):
    if loop == "timm":
        pytest.importorskip("timm")
    survived = survive(loop, kills, tmp_path)
    assert survived.kills == kills
    assert survived.identical == survived.trainings > 0
