"""Trainings that are killed by SIGKILL and resumed, compared with an unbroken one to the bit."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak.loops import LOOPS


@dataclass
class Survived:
    """What a training has been through.

    Attributes:
        kills: number of SIGKILLs.
        while_writing: those that left a checkpoint half written.
        trainings: that were ended, each after some of the kills, and were compared.
        identical: those whose end was that of the unbroken one, to the bit.
    """

    kills: int = 0
    while_writing: int = 0
    trainings: int = 0
    identical: int = 0


def survive(name: str, kills: int, folder: Path, seed: int = 0) -> Survived:
    """Kill and resume trainings of a loop until there have been so many kills.

    Every second kill comes as soon as a checkpoint is being written, the others at random times.
    """
    generator = random.Random(seed)
    _start("nothing", folder / "nothing").join()  # the imports are not to be timed
    started = time.monotonic()
    process = _start(name, folder / "straight")
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the unbroken training of {name} ended by {process.exitcode}")
    seconds = time.monotonic() - started
    expected = torch.load(folder / "straight" / "end.pt", weights_only=True)
    logged = [step for step, _ in expected.get("log", [])]
    if logged != list(range(len(logged))):
        raise RuntimeError(f"the unbroken training of {name} logged the updates {logged}")
    survived = Survived()
    while survived.kills < kills:
        broken = folder / f"broken-{survived.trainings}"
        while not (broken / "end.pt").exists():
            started = time.time()
            process = _start(name, broken)
            in_writing = survived.kills % 2 == 0
            # A write to wait for may not come: the training may be at its end.
            deadline = started + generator.uniform(0, seconds) * (2 if in_writing else 1)
            while process.is_alive() and time.time() < deadline:
                if in_writing and _being_written(broken, started):
                    break
            if survived.kills < kills and process.is_alive():
                process.kill()
            process.join()
            if process.exitcode == -9:
                survived.kills += 1
                survived.while_writing += _being_written(broken, started)
            elif process.exitcode:
                raise RuntimeError(f"a resumed training of {name} ended by {process.exitcode}")
        end = torch.load(broken / "end.pt", weights_only=True)
        survived.trainings += 1
        survived.identical += _identical(end, expected)
        shutil.rmtree(broken)
    return survived


def _start(name: str, folder: Path) -> Any:
    """Start a process that trains, forked from one that has imported what takes long."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "timm", "nas_dynamic.experiment.run", "nas_dynamic.experiment.nni.supernet"]
    )
    process = context.Process(target=_train, args=(name, folder))
    process.start()
    return process


def _train(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if name in LOOPS:
        LOOPS[name](folder)


def _being_written(folder: Path, since: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any("tmp" in e.name and e.stat().st_mtime >= since for e in os.scandir(folder))
    return False


def _identical(here: Any, there: Any) -> bool:
    if torch.is_tensor(here):
        return torch.equal(here, there)
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(_identical(here[k], there[k]) for k in here)
    return here == there
