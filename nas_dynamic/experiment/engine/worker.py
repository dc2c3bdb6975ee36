"""What a machine of the cluster does: computes a piece, and sends the head what comes of it."""

from __future__ import annotations

import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_dynamic.experiment.cli import IMPORT_HINTS
from nas_dynamic.experiment.engine.local import Place
from nas_dynamic.storage.journal import RunError, package_versions

__all__ = ["Files", "FilesLeft", "Terms", "Told", "compute", "read_files"]

Files = Mapping[str, bytes]
"""Name → content of the files in the folder of a piece."""

TELL = 0.5
"""Seconds between two words on the progress, at least."""

REST = 10
"""After files have been sent none are for this many times as long: links may be slow."""

_function: tuple[str, Any] = ("", None)
# What this process computed last: of many small pieces it is read once.


@dataclass(frozen=True)
class Told:
    """Progress of a work of a piece."""

    name: str
    done: int
    total: int
    loss: float | None


@dataclass(frozen=True)
class FilesLeft:
    """Files that a piece has written, or changed, so far."""

    files: Files


@dataclass(frozen=True)
class Terms:
    """What has to be as it is on the head, so that a piece comes out as it would there.

    Attributes:
        threads: of torch.
        gpu: whether there is one.
        versions: of the packages that a result depends on.
    """

    threads: int
    gpu: bool
    versions: Mapping[str, str | None]


def compute(
    function: Sequence[Any],
    argument: Any,
    files: Files | None,
    terms: Terms,
    queue: Any,
    start: int,
) -> tuple[Any, Files]:
    """Compute a piece, in a folder that has its files.

    Args:
        function: a reference to it, in a list, so that ray leaves it to this process to read it.
        argument: of the piece.
        files: of an earlier start; None for a piece that has no folder.
        terms: of the head.
        queue: to the head; what is put into it is there when `put` returns.
        start: tells this start from others in the queue.

    Returns:
        What the function gives, and the files that it has left and not sent.

    Raises:
        RunError: this machine has other versions than the head.
    """
    here = package_versions()
    differing = [
        f"{name} {here[name]} in place of {version}"
        for name, version in terms.versions.items()
        if here[name] != version
    ]
    if differing:
        raise RunError(
            f"results of {platform.node()} would differ from those of the head: it has "
            f"{', '.join(differing)}; install the same there"
        )
    if not terms.gpu:  # `auto` would find one that was not asked for
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for hint in IMPORT_HINTS:
        warnings.filterwarnings("ignore", hint)
    import torch

    torch.set_num_threads(terms.threads)
    called = _read(function[0])
    with tempfile.TemporaryDirectory(prefix="nas-dynamic-") as temporary:
        folder = Path(temporary) / "piece"
        sender = _Sender(folder, lambda content: queue.put((start, content)))
        if files is not None:
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            sender.changed()
        try:
            result = called(argument, Place(sender.work, None if files is None else folder))
        except RunError as error:  # which is for the user to mend, and so says where
            raise type(error)(f"{error} (on {platform.node()})") from error
        return result, sender.changed()


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder, but for what was about to be written when it was stopped."""
    return {
        path.name: path.read_bytes()
        for path in (folder.iterdir() if folder.exists() else ())
        if path.is_file() and path.suffix != ".tmp"
    }


def _read(reference: Any) -> Any:
    global _function
    import ray

    if _function[0] != reference.hex():
        _function = reference.hex(), ray.get(reference)
    return _function[1]


class _Sender:
    """Sends progress, and with it the files of a folder, as they change."""

    def __init__(self, folder: Path, send: Callable[[Told | FilesLeft], None]) -> None:
        self._folder, self._send = folder, send
        self._seen: dict[str, tuple[int, int]] = {}
        self._next_told = self._next_files = 0.0

    def work(self, name: str) -> Callable[..., None]:
        def progress(done: int, total: int, loss: Callable[[], float] | None = None, /) -> None:
            now = time.monotonic()
            if now >= self._next_files:
                # The one before the last checkpoint comes with the result.
                files = self.changed(but=".previous")
                if files:
                    self._send(FilesLeft(files))
                    sent = time.monotonic()
                    self._next_files = sent + REST * (sent - now)
            if now >= self._next_told or done == total:
                self._send(Told(name, done, total, None if loss is None else loss()))
                self._next_told = now + TELL

        return progress

    def changed(self, but: str | None = None) -> dict[str, bytes]:
        """Return the files that are new or changed since the last call, those written last last."""
        found = []
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if path.suffix in (but, ".tmp"):
                continue
            status = path.stat()
            seen = status.st_mtime_ns, status.st_size
            if self._seen.get(path.name) != seen:
                self._seen[path.name] = seen
                found.append((status.st_mtime_ns, path))
        return {path.name: path.read_bytes() for _, path in sorted(found)}
