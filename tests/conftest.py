"""Every test runs on one thread and from one seed, so that equal means equal to the bit."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and of processes that tests start

import pytest
import torch
from hypothesis import settings

from tests.trained_run import compared  # noqa: F401, a fixture of all tests

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats a traceback each time
