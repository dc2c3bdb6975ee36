"""NNI's locks beside the filelock that is installed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import filelock

__all__ = ["lock_problem"]


def lock_problem() -> str | None:
    """Return why NNI's experiments would wait for ever, and the remedy; None if they would not.

    NNI 3.0 sets attributes of filelock's locks that filelock 3.12 has moved: a lock of NNI is then
    never taken, and `NasExperiment` hangs before it trains.
    """
    lock = filelock.SoftFileLock(str(Path(tempfile.gettempdir()) / "nas_dynamic"))
    if not hasattr(lock, "_context"):
        return None
    return (
        f"NNI 3.0 waits for ever for its locks with filelock {filelock.__version__}, so that "
        "NasExperiment hangs before it trains: pip install 'filelock<3.12'"
    )
