"""The seam: what an engine does, and the one that does it here, one piece after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from nas_dynamic.experiment.console import Progress

__all__ = ["Engine", "LocalEngine", "Place", "Work", "open_engine"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")

Work = Callable[[str], Progress]
"""Begins a piece of work, and returns what its progress is told to: `Display.work`."""


@dataclass(frozen=True)
class Place:
    """What a piece has where it is computed.

    Attributes:
        work: shows its progress.
        folder: its files, those of an earlier start among them; None for a piece without any.
    """

    work: Work
    folder: Path | None = None


class Engine(Protocol):
    """Computes pieces that do not depend on each other.

    Attributes:
        work: shows the progress of what is not a piece.
    """

    work: Work

    def map(
        self,
        function: Callable[[Argument, Place], Result],
        arguments: Collection[Argument],
        folders: Collection[Path] = (),
    ) -> Iterator[Result]:
        """Call a function with every argument, and yield the results as they come.

        Args:
            function: picklable, as are the arguments and the results; what it gives depends on its
                argument and the files in its folder alone.
            arguments: one a piece.
            folders: one a piece, if the function leaves files; it finds there what it left.
        """
        ...


def _untold(name: str) -> Progress:
    return lambda done, total, loss=None, /: None


class LocalEngine:
    """Computes the pieces in this process, in their order.

    Args:
        work: shows the progress; by default nothing does.
    """

    def __init__(self, work: Work = _untold) -> None:
        self.work = work

    def map(
        self,
        function: Callable[[Argument, Place], Result],
        arguments: Collection[Argument],
        folders: Collection[Path | None] = (),
    ) -> Iterator[Result]:
        """Call the function; see `Engine`."""
        for argument, folder in zip(arguments, folders or [None] * len(arguments), strict=True):
            yield function(argument, Place(self.work, folder))


@contextlib.contextmanager
def open_engine(name: str, work: Work, device: str) -> Iterator[Engine]:
    """Open the engine of a name for a `with` block.

    Args:
        name: `"local"` or `"ray"`.
        work: shows the progress.
        device: of every piece, as in a configuration.

    Raises:
        ModuleNotFoundError: its package is not installed.
        RunError: there is no cluster, or none whose machines can compute a piece.
    """
    if name == "local":
        yield LocalEngine(work)
        return
    from nas_dynamic.experiment.engine.cluster import RayEngine  # here: ray is an extra

    with RayEngine(work, device) as engine:
        yield engine
