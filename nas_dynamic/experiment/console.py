"""What a run shows on the terminal, or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from nas_dynamic._extras import extra
from nas_dynamic.analysis.text_table import text_table
from nas_dynamic.report.tables import Table

with extra("experiment"):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

__all__ = ["Display"]


class Display:
    """One bar for each piece of work on a terminal, one line for each elsewhere; then tables.

    A context manager: bars are drawn within it.

    Attributes:
        console: prints beside the bars.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._bars = Bars(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
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

    def work(self, name: str) -> Callable[[int, int], None]:
        """Begin a piece of work: the result is told how much is done, and how much there is."""
        started = time.perf_counter()
        task = self._bars.add_task(name, total=None)

        def progress(done: int, total: int) -> None:
            self._bars.update(task, completed=done, total=total)
            if done == total and not self.console.is_terminal:
                seconds = time.perf_counter() - started
                self.console.print(f"{name}: {total} in {seconds:.0f} s")

        return progress

    def table(self, table: Table) -> None:
        """Print a table of a report, and how to read it."""
        lines = text_table(table.header, table.rows, table.text)
        self.console.print(f"\n{table.name}\n\n{lines}\n", soft_wrap=True, markup=False)
        self.say(table.note)

    def say(self, text: str) -> None:
        """Print a paragraph."""
        self.console.print(f"{text}\n", markup=False)
