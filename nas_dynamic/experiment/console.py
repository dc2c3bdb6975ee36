"""What a run shows on the terminal, or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from nas_dynamic._extras import extra
from nas_dynamic.analysis.text_table import text_table
from nas_dynamic.report.tables import Table

with extra("experiment"):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

__all__ = ["Display", "Progress"]

SHARE, MINUTE = 0.05, 60.0
"""Without a terminal, what is done between two lines, or the seconds between them."""

LEAST = 5.0
"""Seconds between two lines at least: of short work the last line is enough."""


class Progress(Protocol):
    """Told how much is done, how much there is to do, and how to read the loss of late."""

    def __call__(self, done: int, total: int, loss: Callable[[], float] | None = None, /) -> None:
        """Show it, if it is time to: only then the loss is read."""
        ...


class Display:
    """One bar for each piece of work on a terminal, some lines for each elsewhere; then tables.

    A context manager: bars are drawn within it.

    Attributes:
        console: prints beside the bars.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._bars = Bars(
            TextColumn("{task.description:<24}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def work(self, name: str) -> Progress:
        """Begin a piece of work, whose progress is told to the result."""
        return self._bar(name) if self.console.is_terminal else _Lines(name, self.console)

    def table(self, table: Table) -> None:
        """Print a table of a report, and how to read it."""
        lines = text_table(table.header, table.rows, table.text)
        self.console.print(f"\n{table.name}\n\n{lines}\n", soft_wrap=True, markup=False)
        self.say(table.note)

    def heading(self, text: str) -> None:
        """Print what the next tables and paragraphs are of."""
        self.console.print(f"\n[bold]{text}[/bold]")

    def say(self, text: str) -> None:
        """Print a paragraph."""
        self.console.print(f"{text}\n", markup=False)

    def commands(self, what: dict[str, str]) -> None:
        """Print commands to go on with, each after what it is for; never broken into lines."""
        for purpose, command in what.items():
            self.console.print(f"{purpose}:\n  {command}", markup=False, soft_wrap=True)

    def _bar(self, name: str) -> Progress:
        task = self._bars.add_task(name, total=None, loss="")
        read = 0.0

        def progress(done: int, total: int, loss: Callable[[], float] | None = None, /) -> None:
            nonlocal read
            self._bars.update(task, completed=done, total=total)
            now = time.perf_counter()
            if loss is not None and (now - read >= 1 or done == total):
                read = now
                self._bars.update(task, loss=f"loss {loss():.3f}")

        return progress


class _Lines:
    """Tells the progress of a piece of work in lines, for a log."""

    def __init__(self, name: str, console: Console) -> None:
        self.name, self.console = name, console
        self.started = self.told = time.perf_counter()
        self.first: int | None = None
        self.shown = 0

    def __call__(self, done: int, total: int, loss: Callable[[], float] | None = None, /) -> None:
        now = time.perf_counter()
        if self.first is None:  # of a training that goes on, what was done before
            self.first = self.shown = done - 1
        if done < total:
            since = now - self.told
            if since < LEAST or (done - self.shown < SHARE * total and since < MINUTE):
                return
        self.told, self.shown = now, done
        said = f", loss {loss():.3f}" if loss is not None else ""
        if done == total:
            text = f"{self.name}: {total:,} in {now - self.started:.0f} s{said}"
        else:
            left = (now - self.started) / (done - self.first) * (total - done)
            text = (
                f"{self.name}: {done:,} of {total:,} ({done / total:.0%}){said}, {_time(left)} left"
            )
        self.console.print(text, markup=False, soft_wrap=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
