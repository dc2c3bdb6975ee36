"""Ranks of a distributed training draw the same subnets, or are stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.optim import create_optimizer_v2

from nas_dynamic.adapters.timm import attach
from tests.timm.loop import (
    tiny_supernet,
)

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks of `ddp.py` saved."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ddp.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.process
@pytest.mark.xdist_group("ranks of timm")
def test_ranks_draw_one_subnet_and_stay_equal(ranks):
    first, second = (rank["agree"] for rank in ranks)
    assert first["error"] is None
    assert len(first["drawn"]) == 4
    assert first["drawn"] == second["drawn"]
    assert len({tuple(a.values()) for a in first["drawn"]}) > 1
    for name, tensor in first["parameters"].items():
        assert torch.equal(tensor, second["parameters"][name]), name


@pytest.mark.process
@pytest.mark.xdist_group("ranks of timm")
@pytest.mark.parametrize(
    ("scenario", "updates", "message"),
    [
        ("other seed", 0, "rank 1 differs from rank 0 in the architecture"),
        ("other weight", 1, "rank 1 differs from rank 0 in the weights: it has made 2 updates"),
    ],
)
def test_ranks_that_go_apart_are_stopped_unless_that_is_turned_off(
    ranks, scenario, updates, message
):
    for rank in ranks:
        assert len(rank[scenario]["drawn"]) == updates
        assert message in rank[scenario]["error"]
        assert rank["unchecked"]["error"] is None
    assert ranks[0]["unchecked"]["drawn"] != ranks[1]["unchecked"]["drawn"]


def test_check_of_ranks_is_refused_where_it_makes_no_sense():
    supernet = tiny_supernet()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    with pytest.raises(ValueError, match="must be 1 or more, got 0"):
        attach(optimizer, supernet, check_ranks_every=0)
    attach(optimizer, supernet)  # nothing was left behind
