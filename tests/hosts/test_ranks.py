"""Two ranks of DDP in every host: they train the same subnets, as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attach.reference import assert_identical
from tests.hosts.tiny import Task, reference

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("hosts")]
ROOT = Path(__file__).parents[2]
ADAPTERS = ["Lightning", "transformers", "mmengine"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks end with."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.hosts.ranks", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("host", [*ADAPTERS, "Accelerate", "Fabric"])
def test_two_ranks_equal_one_process_with_both_batches(host: str, ranks: list[dict[str, Any]]):
    """To the bit: the mean of two gradients is the same sum of two halves."""
    one, other = (rank["weights"][host] for rank in ranks)
    assert_identical(one, other)
    assert_identical(one, reference(Task(accumulate=2)).state_dict())


@pytest.mark.parametrize("host", ADAPTERS)
def test_ranks_of_other_seeds_are_stopped(host: str, ranks: list[dict[str, Any]]):
    for rank in ranks:
        assert "rank 1 differs from rank 0 in the architecture" in rank["errors"][host]
