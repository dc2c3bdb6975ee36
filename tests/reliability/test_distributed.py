"""Ranks of a DDP training train one thing, equal one process, and are stopped where they differ."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nas_dynamic.distributed import RankAgreement
from tests.reference import assert_identical
from tests.reliability.ranks import APART, CUT, EQUAL, STEPS, Training

ROOT = Path(__file__).parents[2]
RANKS = 2


def torchrun(*arguments: str, ranks: int = RANKS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "tests.reliability.ranks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What ranks saved under torchrun, and how it ended after rank 1 had stopped."""
    folder = tmp_path_factory.mktemp("ranks")
    result = torchrun(str(folder), "--stop")
    found = {path.name: torch.load(path, weights_only=True) for path in folder.iterdir()}
    return found | {"torchrun": [result.returncode, result.stderr]}


@pytest.mark.parametrize("scenario", EQUAL)
def test_ranks_equal_one_process_with_the_joined_batch(scenario: str, ended: Mapping[str, Any]):
    assert_identical(ended[f"{scenario}.1"], ended[f"{scenario}.0"])
    alone = Training(scenario)
    alone.train()
    joined = ended[f"{scenario}.0"]
    torch.testing.assert_close(joined["model"], alone.model.state_dict(), rtol=1e-4, atol=1e-6)
    assert joined["sampler"] == alone.sampler.state_dict()
    saved = joined["optimizer"]["dynamic_training"]
    here = alone.optimizer.state_dict()["dynamic_training"]
    assert saved["updates"] == here["updates"] == STEPS
    assert len(here["groups"]["groups"]) > 1
    for (group, state, _), (group_here, state_here, _) in zip(
        saved["groups"]["groups"], here["groups"]["groups"], strict=True
    ):
        assert group == group_here
        torch.testing.assert_close(state, state_here, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scenario", ["coast", "adamw freeze"])
def test_training_of_two_ranks_resumes_in_one_process(scenario: str, ended: Mapping[str, Any]):
    alone = Training(scenario)
    alone.load_state_dict(ended[f"{scenario}.0.cut"])
    alone.train(CUT, STEPS)
    joined = ended[f"{scenario}.0"]["model"]
    torch.testing.assert_close(joined, alone.model.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("scenario", "updates", "differs"),
    [
        ("other-seed coast", 1, "the architecture, the momentum group: it has made 1 up"),
        ("other-weights coast", 6, "rank 1 differs from rank 0 in the weights: it has made 6 up"),
    ],
)
def test_ranks_that_go_apart_are_stopped(
    scenario: str, updates: int, differs: str, ended: Mapping[str, Any]
):
    assert scenario in APART
    messages = [ended[f"{scenario}.{rank}"] for rank in range(RANKS)]
    for made, message in messages:
        assert made == updates
        assert "rank 1 differs from rank 0 in " in message
        assert differs in message
    assert messages[0] == messages[1]


def test_a_stopped_rank_ends_the_others_with_an_error(ended: Mapping[str, Any]):
    code, errors = ended["torchrun"]
    assert code != 0
    assert "exitcode  : 7" in errors
    assert "stopped.0" not in ended


def test_agreement_needs_a_process_group():
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="init_process_group"):
        RankAgreement(Training("coast").dynamic)


def test_lightning_ranks_train_the_same_subnets_and_stay_equal(tmp_path: Path):
    pytest.importorskip("nni")
    script = Path(__file__).with_name("lightning_ranks.py")
    command = [sys.executable, str(script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(RANKS))
    assert len(first["subnets"]) == 6
    assert len({tuple(subnet.values()) for subnet in first["subnets"]}) > 1
    assert first["subnets"] == second["subnets"]
    assert_identical(first["weights"], second["weights"])
