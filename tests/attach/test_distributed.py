"""Ranks of a DDP training train one thing, equal one process, and are stopped where they differ."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nas_dynamic.attach.ranks import RankAgreement
from tests.attach.ranks import APART, CUT, EQUAL, SHARDS, STEPS, Training
from tests.attach.reference import assert_identical

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("ranks")]

needs_shards = pytest.mark.skipif(not SHARDS, reason="FSDP2 of this torch needs a GPU")

ROOT = Path(__file__).parents[2]
RANKS = 2


def torchrun(
    *arguments: str, ranks: int = RANKS, module: str = "ranks"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", f"tests.attach.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@dataclass(frozen=True)
class Ended:
    """What ranks saved under torchrun, by file name, and how it ended after rank 1 had stopped."""

    ranks: int
    files: dict[str, Any]
    code: int
    errors: str

    def __getitem__(self, name: str) -> Any:
        return self.files[name]


@pytest.fixture(scope="module", params=[2, 4])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("ranks")
    result = torchrun(str(folder), "--stop", ranks=request.param)
    files = {
        path.name: torch.load(path, weights_only=True)
        for path in folder.iterdir()
        if path.suffix != ".own"
    }
    return Ended(request.param, files, result.returncode, result.stderr)


def assert_near(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Equal up to rounding in weights and in the state of every group; else equal."""
    torch.testing.assert_close(here["model"], there["model"], rtol=1e-4, atol=1e-6)
    assert here["sampler"] == there["sampler"]
    saved, other = (x["optimizer"]["dynamic_training"] for x in (here, there))
    assert saved["updates"] == other["updates"] == STEPS
    assert len(other["groups"]["groups"]) > 1
    for (group, state, _), (other_group, other_state, _) in zip(
        saved["groups"]["groups"], other["groups"]["groups"], strict=True
    ):
        assert group == other_group
        torch.testing.assert_close(state, other_state, rtol=1e-4, atol=1e-6)


def test_ranks_equal_one_process_with_the_joined_batch(ended: Ended):
    for scenario in EQUAL[ended.ranks]:
        for rank in range(1, ended.ranks):
            assert_identical(ended[f"{scenario}.{rank}"], ended[f"{scenario}.0"], scenario)
        alone = Training(scenario)
        alone.train()
        assert_near(ended[f"{scenario}.0"], alone.state_dict())


def test_training_of_ranks_resumes_in_one_process(ended: Ended):
    for scenario in EQUAL[ended.ranks]:
        alone = Training(scenario)
        alone.load_state_dict(ended[f"{scenario}.0.cut"])
        alone.train(CUT, STEPS)
        assert_near(ended[f"{scenario}.0"], alone.state_dict())


def test_training_of_one_process_resumes_on_ranks(ended: Ended):
    for scenario in EQUAL[ended.ranks]:
        if "sharded" in scenario:
            continue
        assert_near(ended[f"{scenario}.0.resumed"], ended[f"{scenario}.0"])
        for rank in range(1, ended.ranks):
            assert_identical(ended[f"{scenario}.{rank}.resumed"], ended[f"{scenario}.0.resumed"])


@needs_shards
def test_sharded_ranks_resume_from_files_of_their_own_to_the_bit(ended: Ended):
    scenarios = [scenario for scenario in EQUAL[ended.ranks] if "sharded" in scenario]
    assert scenarios
    for scenario in scenarios:
        assert_identical(ended[f"{scenario}.0.resumed"], ended[f"{scenario}.0"], scenario)


@needs_shards
def test_sharded_ranks_skip_a_step_together_where_one_of_them_has_an_inf(ended: Ended):
    for rank in range(ended.ranks):
        skipped, troubled, untroubled = ended[f"skipped.{rank}"]
        assert skipped == [1, 2]
        for state in (troubled, untroubled):
            state["optimizer"]["dynamic_training"].pop("skipped")
        assert_identical(troubled, untroubled)


def test_what_would_train_something_else_is_refused(ended: Ended):
    messages = ended["refusals.0"]
    assert "FullyShardedDataParallel cannot freeze" in messages["flat"]
    assert "ZeroRedundancyOptimizer wraps another optimizer, .optim (SGD), and" in messages["zero"]
    assert "local" not in messages, "PostLocalSGDOptimizer updates by the optimizer inside of it"


@pytest.mark.parametrize(
    ("scenario", "updates", "differs"),
    [
        ("other-seed coast", 1, "the architecture, the momentum group: it has made 1 up"),
        ("other-weights coast", 6, "rank 1 differs from rank 0 in the weights: it has made 6 up"),
    ],
)
def test_ranks_that_go_apart_are_stopped(scenario: str, updates: int, differs: str, ended: Ended):
    assert scenario in APART
    messages = [ended[f"{scenario}.{rank}"] for rank in range(ended.ranks)]
    for made, message in messages:
        assert made == updates
        assert "rank 1 differs from rank 0 in " in message
        assert differs in message
        assert re.search(r"the last of \{'\w+': .*\} in group ", message)
        # Only ranks that differ are named.
        assert ("rank 3 differs" in message) == (ended.ranks == 4 and "seed" in scenario)
    assert all(message == messages[0] for message in messages)


def test_a_stopped_rank_ends_the_others_with_an_error(ended: Ended):
    assert ended.code != 0
    assert "exitcode  : 7" in ended.errors
    assert not [name for name in ended.files if name.startswith("stopped.")]


def test_agreement_needs_a_process_group():
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="init_process_group"):
        RankAgreement(Training("coast").dynamic)


def test_lightning_ranks_train_the_same_subnets_stay_equal_and_are_stopped_if_not(tmp_path: Path):
    pytest.importorskip("nni")
    result = torchrun(str(tmp_path), module="lightning_ranks")
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(RANKS)]
    first, second = (rank["agree"] for rank in ranks)
    assert first["error"] is None
    assert len(first["subnets"]) == 6
    assert len({tuple(subnet.values()) for subnet in first["subnets"]}) > 1
    assert first["subnets"] == second["subnets"]
    assert_identical(first["weights"], second["weights"])
    for rank in ranks:
        assert "rank 1 differs from rank 0 in the architecture" in rank["apart"]["error"]
        assert rank["apart"]["subnets"] == []
