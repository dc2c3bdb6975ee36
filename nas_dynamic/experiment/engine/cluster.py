"""Pieces over the machines of a Ray cluster, from this one, the head of the work.

Ray, since it gives each piece a process of its own, in whose main thread Lightning and NNI train,
and the GPUs that it asks for.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from nas_dynamic._extras import extra
from nas_dynamic.experiment.console import Progress
from nas_dynamic.experiment.engine.local import Place, Work
from nas_dynamic.experiment.engine.worker import (
    Files,
    FilesLeft,
    Terms,
    Told,
    compute,
    read_files,
)
from nas_dynamic.storage.journal import RunError, package_versions, write_bytes

with extra("ray"):
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["RayEngine"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")

LOSSES = 3
"""Workers that a piece may lose, one after the other, without a new file of it in between."""

POLL = 0.2
"""Seconds after which the progress is shown at the latest."""

REACHED = 10.0
"""Seconds in which a cluster has to answer; ray itself tries for minutes."""

START = (
    "start one by `ray start --head`, and on each further machine `ray start "
    "--address=HOST:6379`; RAY_ADDRESS=HOST:6379 names it, RAY_ADDRESS=local is this machine alone"
)


@dataclass(eq=False)
class _Piece:
    """A piece, as far as it is known here.

    Attributes:
        start: the number of its last start.
        shown: name of a work → what its progress is told to.
        losses: workers that it has lost since it left a file.
    """

    number: int
    argument: Any
    folder: Path | None
    start: int = -1
    shown: dict[str, Progress] = field(default_factory=dict)
    losses: int = 0

    def __str__(self) -> str:
        return str(self.folder or f"piece {self.number}")


class RayEngine:
    """Computes the pieces as tasks of Ray, and keeps their files here: see `Engine`.

    A context manager. A piece takes as many CPUs as torch has threads here, and has as many, so
    that it comes out as it does here; on CUDA a GPU as well. One whose worker is lost starts again
    on another, with the files that it had left.

    Args:
        work: shows the progress.
        device: of the pieces, as in a configuration.

    Raises:
        RunError: no cluster can be reached, or none of its machines can compute a piece.
    """

    def __init__(self, work: Work, device: str) -> None:
        self.work = work
        if device not in ("auto", "cpu", "cuda"):
            raise RunError(
                f"the device is {device!r}, and with the engine ray it is Ray that picks one for "
                "each piece: give cpu, cuda or auto"
            )
        gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        self._terms = Terms(torch.get_num_threads(), gpu, package_versions())
        self._device = device
        self._starts = itertools.count()
        self._shipped: tuple[Any, Any] | None = None
        _connect()
        try:
            self._check_machines()
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
            self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
            self._queue.qsize()  # its process has started: no piece has to wait for that
        except BaseException:
            ray.shutdown()
            raise
        # max_calls: those with a GPU would else end after each piece, and load torch anew.
        self._compute = ray.remote(
            num_cpus=self._terms.threads, num_gpus=int(gpu), max_retries=0, max_calls=0
        )(compute)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ray.shutdown()

    def map(
        self,
        function: Callable[[Argument, Place], Result],
        arguments: Collection[Argument],
        folders: Collection[Path | None] = (),
    ) -> Iterator[Result]:
        """Call the function, as the machines are free; see `Engine`.

        Raises:
            RunError: a piece has lost too many workers.
            Exception: whatever a piece has raised.
        """
        places = zip(arguments, folders or [None] * len(arguments), strict=True)
        pieces = [_Piece(number, *of_piece) for number, of_piece in enumerate(places)]
        running: dict[Any, _Piece] = {}
        try:
            for piece in pieces:
                running[self._start(function, piece)] = piece
            while running:
                ended, _ = ray.wait(list(running), timeout=POLL)
                self._listen(running.values())
                for reference in ended:
                    piece = running.pop(reference)
                    try:
                        result, files = ray.get(reference)
                    except RayTaskError as error:
                        raise _raised(error) from error
                    except RayError as error:
                        _lose(piece, error)
                        running[self._start(function, piece)] = piece
                        continue
                    _write(piece, files)
                    yield result
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _start(self, function: Any, piece: _Piece) -> Any:
        if self._shipped is None or self._shipped[0] != function:
            self._shipped = function, ray.put(function)
        piece.start = next(self._starts)
        files = None if piece.folder is None else read_files(piece.folder)
        return self._compute.remote(
            [self._shipped[1]], piece.argument, files, self._terms, self._queue, piece.start
        )

    def _listen(self, running: Collection[_Piece]) -> None:
        """Show and keep what the pieces have sent; not what one sends that was given up."""
        starts = {piece.start: piece for piece in running}
        for start, content in self._queue.get_nowait_batch(self._queue.qsize()):
            piece = starts.get(start)
            if piece is not None and isinstance(content, Told):
                self._show(piece, content)
            elif piece is not None and isinstance(content, FilesLeft):
                _write(piece, content.files)
                piece.losses = 0

    def _show(self, piece: _Piece, told: Told) -> None:
        if told.name not in piece.shown:
            piece.shown[told.name] = self.work(told.name)
        loss = told.loss
        piece.shown[told.name](told.done, told.total, None if loss is None else lambda: loss)

    def _check_machines(self) -> None:
        """Check that there is a machine that a piece fits on."""
        terms = self._terms
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fitting = [machine for machine in machines if machine.get("GPU", 0) >= terms.gpu]
        if not fitting:
            raise RunError(
                f"the device is {self._device!r}, and no machine of the cluster offers a GPU: "
                "give cpu"
            )
        cpus = max(machine.get("CPU", 0) for machine in fitting)
        if cpus < terms.threads:
            raise RunError(
                f"a piece takes {terms.threads} CPUs, for torch has as many threads here, and no "
                f"machine of the cluster offers more than {cpus:g}"
                + (f": set OMP_NUM_THREADS={cpus:g}" if cpus >= 1 else ": add one that does")
            )


def _connect() -> None:
    """Connect to the cluster of RAY_ADDRESS, or to the one that this machine is part of."""
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if address not in ("auto", "local"):
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        at = "" if address == "auto" else f" at {address}"
        raise RunError(f"no cluster of Ray can be reached{at} ({error}); {START}") from error


def _raised(error: RayTaskError) -> BaseException:
    """Return what a piece has raised, or why there was none."""
    cause = error.cause
    if isinstance(cause, RayError):
        return RunError(
            f"{error.ip} cannot read a piece ({_first_line(cause)}); install there what is "
            "installed here, the module of the space as well"
        )
    assert isinstance(cause, BaseException)
    return cause


def _lose(piece: _Piece, error: RayError) -> None:
    """Make ready for another worker."""
    piece.losses += 1
    reason = _first_line(error)
    if piece.losses > LOSSES:
        raise RunError(f"{piece} has lost {piece.losses} workers, the last one so: {reason}")
    warnings.warn(f"{piece} has lost its worker ({reason}); another one takes it", stacklevel=3)
    piece.shown.clear()


def _first_line(error: RayError) -> str:
    return str(error).strip().splitlines()[0]


def _write(piece: _Piece, files: Files) -> None:
    """Write files in the order in which they were made: a result.json is the last."""
    for name, content in files.items():
        assert piece.folder is not None
        write_bytes(piece.folder / name, content)
