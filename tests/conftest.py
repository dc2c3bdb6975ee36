"""Every test runs on one thread and from one seed, so that equal means equal to the bit."""

from __future__ import annotations

import contextlib
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and of processes that tests start

import pytest
import torch
from hypothesis import settings

from tests.trained_run import compared  # noqa: F401, a fixture of all tests

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Fill a cache that the test processes would else write at once, and read half-written.

    yapf, which mmengine imports, keeps its grammar there at its first import.
    """
    if not hasattr(config, "workerinput"):
        with contextlib.suppress(ImportError):
            import yapf  # noqa: F401


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats a traceback each time
