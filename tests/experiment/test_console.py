"""What is told of a piece of work in a log, and on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nas_dynamic.experiment import console
from nas_dynamic.experiment.console import Display


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def told(clock, updates, seconds, first=1):
    """Return the lines of so many updates, of which each takes so many seconds."""
    out, read = io.StringIO(), []
    progress = Display(Console(file=out, width=60)).work("train")
    for done in range(first, updates + 1):
        clock[0] += seconds
        progress(done, updates, lambda: (0.5, read.append(1))[0])
    return out.getvalue().splitlines(), read


def test_without_a_terminal_every_twentieth_part_has_a_line(clock):
    lines, read = told(clock, 1000, 1.0)
    assert len(lines) == 20
    assert lines[0] == "train: 50 of 1,000 (5%), loss 0.500, 0:15:50 left"
    assert lines[-1] == "train: 1,000 in 1000 s, loss 0.500"
    assert len(read) == 20, "a loss that is not shown must not wait for the device"


def test_of_long_work_every_minute_has_a_line(clock):
    lines, _ = told(clock, 100_000, 1.0)
    assert lines[0].startswith("train: 60 of 100,000 (0%)")
    assert len(lines) == 100_000 // 60 + 1


def test_short_work_has_its_last_line_alone(clock):
    assert told(clock, 40, 0.1)[0] == ["train: 40 in 4 s, loss 0.500"]


def test_the_time_left_of_work_that_goes_on_is_by_what_was_done_now(clock):
    lines, _ = told(clock, 100, 10.0, first=81)
    assert lines[0] == "train: 85 of 100 (85%), loss 0.500, 0:02:30 left"


def test_on_a_terminal_a_bar_has_loss_and_time_left():
    out = io.StringIO()
    display = Display(Console(file=out, width=120, force_terminal=True))
    with display:
        progress = display.work("train seed 0")
        for done in range(1, 11):
            progress(done, 10, lambda: 0.25)
    for part in ("train seed 0", "10/10", "left", "loss 0.250"):
        assert part in out.getvalue()
