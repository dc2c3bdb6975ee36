"""What runs leave on disk: JSON that is there in full or not at all, and files that only grow."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "Journal",
    "RunError",
    "command_text",
    "environment",
    "package_versions",
    "read_json",
    "write_bytes",
    "write_json",
    "write_text",
]

PACKAGES = ("nas-dynamic", "torch", "torchvision", "numpy", "nni", "pytorch-lightning")


class RunError(ValueError):
    """A run cannot be made as it was asked for; the message says what to change."""


def command_text(*words: Any) -> str:
    """Return words of a command line as they can be pasted into a shell."""
    return shlex.join(map(str, words))


def read_json(path: Path, remedy: str) -> Any:
    """Return the plain data of a file.

    Raises:
        RunError: it cannot be read, or is no JSON; the message ends in the remedy.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged, it is not valid JSON ({error}); {remedy}") from error


def write_json(path: Path, content: Any) -> None:
    """Write plain data; a reader, or a start after a crash, sees the old file or the new one.

    What is not finite, such as the loss of a network that diverged, is null in the file.
    """
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a file that is there in full or not at all.

    Raises:
        RunError: it cannot be written.
    """
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is there in full or not at all, as `write_text` does."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn what the operating system refuses while a file is written into an error with its name.

    Args:
        path: of the file.
        temporary: what is written in its place at first: removed where that fails, for it would
            keep a full disk full.

    Raises:
        RunError: names the file and the reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch raises an error of its own in the handling of the system's.
        refused = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refused, OSError):
            raise
        raise RunError(
            f"cannot write {path}: {refused.strerror or refused}{_room(path)}"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which need not be there yet.

    A mebibyte is written for it, and removed.

    Raises:
        RunError: names the folder and the reason.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RunError(f"cannot write into {folder}: {there} is a file; choose another folder")
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(2**20))
            probe.flush()
    except OSError as error:
        raise RunError(
            f"cannot write into {folder}: {error.strerror or error}{_room(there)}; choose another "
            "folder, or make room in it"
        ) from error


def _room(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(path.absolute().parent).free / 2**20:,.0f} MiB are free)"
    return ""


class Journal:
    """A file of JSON lines that only grows: a definition, then results as they come.

    A context manager, which closes the file; of one writer at a time. After a stop at any point
    the next start has every line that was appended: a line that was cut off while it was written
    is dropped.

    Args:
        path: of the file, which is made if it is not there.
        definition: whatever decides the results, as plain data; None for results alone.
        kind: of the results, for messages.

    Attributes:
        lines: what was appended so far, by earlier starts as well.

    Raises:
        RunError: the file has another definition, is no journal, or cannot be written. It is left
            as it is.
    """

    def __init__(self, path: str | Path, definition: dict[str, Any] | None, kind: str) -> None:
        self._path = path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab+")  # noqa: SIM115, closed by __exit__
        try:
            # As it will be read: JSON has lists for tuples, and text for the keys of a dict.
            self.lines = self._read(path, json.loads(json.dumps(definition)), kind)
        except BaseException:
            self._file.close()
            raise

    def _read(
        self, path: Path, definition: dict[str, Any] | None, kind: str
    ) -> list[dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        kept = content[: content.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in kept.splitlines()]
            known = lines[0] if lines else {}
            decisive = (definition or {}) if lines else {}
            differing = [key for key in decisive if known.get(key) != decisive[key]]
        except (ValueError, AttributeError) as error:
            raise RunError(
                f"{path} does not hold a {kind}: {error}. Choose another path, or remove the file"
            ) from None
        if differing:
            raise RunError(
                f"{path} holds another {kind}: "
                + "; ".join(f"{k} was {known.get(k)}, is {decisive[k]}" for k in differing)
                + ". Choose another path, or remove the file"
            )
        self._file.truncate(len(kept))
        if definition is None:
            return lines
        if not lines:
            self._write(definition)
        return lines[1:]

    def append(self, line: dict[str, Any]) -> None:
        """Keep plain data; it is on the disk when this returns."""
        self.lines.append(line)
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(_finite(line), ensure_ascii=False, allow_nan=False)
        with writing(self._path):
            self._file.write(text.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the hardware that a result depends on."""
    import torch  # here: it takes seconds, which reading a run need not

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages that a result depends on; None for what is missing."""
    return {name: _version(name) for name in PACKAGES}


def _finite(content: Any) -> Any:
    """Return plain data with None for every inf and NaN, which JSON has not."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
