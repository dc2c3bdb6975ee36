"""`--engine ray`, on a cluster of several nodes that are started here.

A node has one CPU, and so computes one piece at a time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="python -m benchmarks.hosts --hosts ray")
import ray
from ray.cluster_utils import Cluster

from nas_dynamic.experiment.engine import cluster
from nas_dynamic.experiment.engine.cluster import LOSSES, RayEngine
from nas_dynamic.storage.journal import RunError
from tests.attach.reference import assert_identical
from tests.experiment.configurations import TINY, write
from tests.hosts import pieces

# Ray starts a dozen processes, which on a busy machine takes as long as it takes.
pytestmark = pytest.mark.timeout(3600)


class Machines:
    """A cluster whose first node computes nothing, so that it outlives those that do."""

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self._nodes: list[Any] = []
        self.address = self._cluster.address

    def have(self, count: int) -> None:
        """Start nodes that compute, until there are so many."""
        while len(self._nodes) < count:
            self._nodes.append(self._cluster.add_node(num_cpus=1))

    def kill_one(self) -> None:
        """Kill a node that computes; its workers end with it."""
        (raylet,) = self._nodes.pop().all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def started() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default they starve where all else is busy
        machines = Machines()
        yield machines
        machines.stop()


@pytest.fixture
def machines(started, monkeypatch) -> Machines:
    started.have(2)
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return started


@pytest.fixture
def engine(machines) -> Iterator[RayEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with RayEngine(lambda name: lambda *told: None, "cpu") as engine:
        yield engine
    torch.set_num_threads(threads)


def start(*words: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nas_dynamic", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def succeed(*words: Any) -> str:
    """Run a command, and return what it has printed."""
    process = start(*words)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def wait_for(process: subprocess.Popen, count: int, folder: Path, pattern: str) -> None:
    """Return once so many files are there, which a process that still runs has left."""
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def without_times(content: Any) -> Any:
    """Return plain data without what differs from one run to the next on any machine."""
    if isinstance(content, dict):
        return {
            key: without_times(value)
            for key, value in content.items()
            if key not in ("cost", "seconds")
        }
    return [without_times(value) for value in content] if isinstance(content, list) else content


def assert_same_results(here: Path, there: Path) -> None:
    """The same files; all that is computed is the same, and weights and optimizers to the bit."""
    names = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert names
    for name in names:
        one, other = here / name, there / name
        if name.suffix == ".jsonl":  # a line when its score is there
            assert sorted(one.read_text().splitlines()) == sorted(other.read_text().splitlines())
        elif name.suffix == ".json":
            assert without_times(json.loads(one.read_text())) == without_times(
                json.loads(other.read_text())
            ), name
        elif name.suffix == ".ckpt":
            states = [torch.load(path, weights_only=True) for path in (one, other)]
            for part in ("state_dict", "optimizer_states", "loops", "lr_schedulers"):
                assert_identical(states[0][part], states[1][part])


# The engine by itself.


def test_pieces_are_computed_at_the_same_time_on_several_nodes(engine, tmp_path):
    files = tmp_path / "first", tmp_path / "second"
    nodes = list(engine.map(pieces.meet, [files, files[::-1]]))
    assert len({*nodes, ray.get_runtime_context().get_node_id()}) == 3


def test_a_piece_has_the_threads_that_it_has_here(engine):
    assert list(engine.map(pieces.threads, range(3))) == [(1, None)] * 3


def test_a_piece_that_loses_its_worker_goes_on_from_its_files_on_another(engine, tmp_path):
    deaths = LOSSES + 2  # more than without a new file between them
    folders = [tmp_path / "seed-0", tmp_path / "seed-1"]
    with pytest.warns(UserWarning, match="seed-0 has lost its worker") as warned:
        starts = list(engine.map(pieces.survive, [deaths, 0], folders))
    assert sorted(starts) == [1, deaths + 1]
    assert len([w for w in warned if "has lost its worker" in str(w.message)]) == deaths
    assert [path.name for path in (tmp_path / "seed-0").iterdir()] == ["starts"]
    assert (tmp_path / "seed-0/starts").read_text() == str(deaths + 1)


def test_a_piece_that_ends_every_worker_is_given_up(engine):
    with (
        pytest.warns(UserWarning, match="has lost its worker"),
        pytest.raises(RunError, match=rf"piece 0 has lost {LOSSES + 1} workers, the last one so: "),
    ):
        list(engine.map(pieces.die, [None]))


def test_what_a_piece_raises_is_raised_here(engine):
    with pytest.raises(FloatingPointError, match=r"^the gradients of step 3$"):
        list(engine.map(pieces.fail, [FloatingPointError("the gradients of step 3")]))
    # That is for the user to mend, and so says where.
    with pytest.raises(RunError, match=rf"^no such image \(on {platform.node()}\)$"):
        list(engine.map(pieces.fail, [RunError("no such image")]))


def test_another_version_on_a_machine_is_refused(machines, monkeypatch):
    here = cluster.package_versions()
    monkeypatch.setattr(cluster, "package_versions", lambda: here | {"numpy": "0.1"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    wanted = rf"it has numpy {here['numpy']} in place of 0.1; install the same there"
    with (
        RayEngine(lambda name: lambda *told: None, "cpu") as engine,
        pytest.raises(RunError, match=wanted),
    ):
        list(engine.map(pieces.threads, [0]))


def test_a_piece_that_is_too_large_for_every_machine_is_refused(machines):
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with pytest.raises(RunError, match=r"takes 4 CPUs, .* more than 1: set OMP_NUM_THREADS=1$"):
            RayEngine(lambda name: lambda *told: None, "cpu")
    finally:
        torch.set_num_threads(threads)
    assert not ray.is_initialized()


# The commands.

EPOCHS = 40
COMPARED = ("--seed", "3", "5", "--subnets", "6", "--standalone-epochs", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def compared(started, folder) -> tuple[Path, Path]:
    """The folders of a comparison that was made here, and of one over two nodes."""
    started.have(2)
    config = write(folder / "compare.yaml", TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        here = succeed("compare", config, "--out", folder / "here", *COMPARED)
        patch.setenv("RAY_ADDRESS", started.address)
        there = succeed("compare", config, "--out", folder / "there", *COMPARED, "--engine", "ray")
    (folder / "here.txt").write_text(here)
    (folder / "there.txt").write_text(there)
    return folder / "here", folder / "there"


def test_a_comparison_comes_out_as_it_does_here(compared):
    assert_same_results(*compared)


def test_the_progress_of_all_is_told_at_the_head(compared, folder):
    told = [
        sorted(re.findall(r"^(train .*|score .*): [\d,]+ in \d+ s", text, re.MULTILINE))
        for text in ((folder / f"{name}.txt").read_text() for name in ("here", "there"))
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 4 + 4 + 1


@pytest.mark.parametrize(
    "options",
    [("--budget", "40"), ("--strategy", "surrogate", "--budget", "80", "--minimize", "parameters")],
    ids=["evolution", "surrogate"],
)
def test_a_search_finds_what_it_finds_here(machines, compared, options, tmp_path):
    for engine in ("local", "ray"):
        shutil.copytree(compared[0] / "small-compare/dynamic", tmp_path / engine)
        succeed("search", tmp_path / engine, *options, "--engine", engine)
    assert (tmp_path / "ray/search.json").exists()
    assert_same_results(tmp_path / "ray", tmp_path / "local")


def test_a_search_of_several_runs_that_was_killed_finds_what_it_finds_here(
    machines, compared, tmp_path
):
    runs = tmp_path / "runs"  # search.json names the folders
    for engine in ("local", "ray"):
        for name in ("static", "dynamic"):
            shutil.copytree(compared[0] / "small-compare" / name, runs / name)
        command = ["search", *sorted(runs.iterdir()), "--budget", "40", "--engine", engine]
        if engine == "ray":
            scores = runs / "static/seed-3/scores.jsonl"
            known = scores.read_text().count("\n")
            process = start(*command)
            while scores.read_text().count("\n") < known + 10:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.01)
            process.kill()
            process.communicate()
            assert not list(runs.glob("*/search.json"))
        succeed(*command)
        runs.rename(tmp_path / engine)
    assert len(list((tmp_path / "ray").glob("*/search.json"))) == 2
    assert_same_results(tmp_path / "ray", tmp_path / "local")


@pytest.fixture(scope="module")
def unbroken(folder) -> tuple[str, Path]:
    """A configuration of three seeds, which trains for some time, and its run here."""
    config = write(folder / "train.yaml", TINY, epochs=EPOCHS, seeds=[0, 1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        succeed("train", config, "--out", folder / "unbroken")
    return config, folder / "unbroken/small"


def test_a_node_that_is_killed_is_made_good_by_the_other(machines, unbroken, tmp_path):
    config, expected = unbroken
    process = start("train", config, "--out", tmp_path, "--engine", "ray")
    wait_for(process, 2, tmp_path, "small/*/last.ckpt")  # both nodes train
    machines.kill_one()
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert "has lost its worker" in printed
    assert_same_results(tmp_path / "small", expected)


@pytest.fixture(scope="module")
def killed(started, unbroken, folder) -> Path:
    """A folder of runs, with one whose head was killed."""
    started.have(2)
    out = folder / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_ADDRESS", started.address)
        process = start("train", unbroken[0], "--out", out, "--engine", "ray")
    wait_for(process, 2, out, "small/*/last.ckpt")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list(out.rglob("result*.json"))
    return out


@pytest.mark.parametrize("engine", ["ray", "local"])
def test_a_head_that_was_killed_goes_on(engine, machines, unbroken, killed, tmp_path):
    config, expected = unbroken
    shutil.copytree(killed, tmp_path / "runs")
    begun = list((tmp_path / "runs").rglob("last.ckpt"))
    epochs = [torch.load(path, weights_only=True)["epoch"] for path in begun]
    assert len(epochs) == 2
    assert max(epochs) < EPOCHS - 1
    succeed("train", config, "--out", tmp_path / "runs", "--resume", "--engine", engine)
    assert_same_results(tmp_path / "runs/small", expected)


def test_a_training_that_diverges_ends_as_it_does_here(machines, tmp_path):
    optimizer = {"kwargs": {"lr": 1e6, "momentum": 0.9}}
    config = write(tmp_path / "config.yaml", TINY, optimizer=optimizer, epochs=4)
    process = start("train", config, "--out", tmp_path, "--engine", "ray")
    printed, _ = process.communicate()
    assert process.returncode == 1
    assert "nas-dynamic: the training diverged: the gradients of step" in printed
    assert not list(tmp_path.rglob("result*.json"))


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda:1"}, "the device is 'cuda:1'"),
        ({"device": "cuda"}, "the device is 'cuda', and no machine of the cluster offers a GPU"),
        ({"RAY_ADDRESS": None}, r"can be reached at 127\.0\.0\.1:\d+ \(.*refused"),
        ({"RAY_ADDRESS": "here"}, r"can be reached at here \(.*RAY_ADDRESS=HOST:6379"),
    ],
    ids=["one of several", "no GPU", "nobody", "no address"],
)
def test_what_cannot_be_computed_is_refused_before_anything_is_written(
    machines, changes, message, tmp_path, monkeypatch
):
    config = write(tmp_path / "config.yaml", TINY, device=changes.pop("device", "cpu"))
    for name, value in changes.items():
        monkeypatch.setenv(name, value or f"127.0.0.1:{free_port()}")
    process = start("train", config, "--out", tmp_path / "runs", "--engine", "ray")
    printed, _ = process.communicate()
    assert process.returncode == 1
    assert re.search(message, printed, re.MULTILINE), printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "runs").exists()
