"""Long runs of what must not break: `python -m benchmarks.soak`; the short form is in the tests.

Kills trainings by SIGKILL at random points, and as soon as a checkpoint is being written, resumes
them, and compares the end with that of an unbroken one, to the bit. Trains with 8 momentum groups
for 100,000 updates and watches the resident memory.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, SearchSpace, UniformSampler
from nas_dynamic.storage import checkpoint as checkpoints
from nas_dynamic.storage.journal import environment, write_json

RESULTS = Path(__file__).parent / "results" / "soak.json"
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


class Supernet(nn.Module):
    """Two layers of 8 candidates, which are bottlenecks of different widths."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                label: nn.ModuleList(
                    nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, features))
                    for width in WIDTHS
                )
                for label in ("layer1", "layer2")
            }
        )

    def forward(self, x: torch.Tensor, sampled: dict[str, Any]) -> torch.Tensor:
        """Features (N, features) → outputs of the same shape."""
        for label, choice in self.layers.items():
            x = x + choice[sampled[label] - 1](x)
        return x


class PlainLoop:
    """A loop of one's own with all that it has to keep: see `state_dict`."""

    def __init__(self, updates: int) -> None:
        torch.manual_seed(0)
        self.model = Supernet()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, updates)
        space = SearchSpace({"layer1": WIDTHS, "layer2": WIDTHS})
        self.sampler = UniformSampler(space, seed=3)
        self.order = torch.Generator().manual_seed(4)
        self.sampled: dict[str, Any] = {}
        self.log: list[list[Any]] = []
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.sampled,
            calr=CaLR(lambda a: a["layer1"] + a["layer2"], bounds=(2, 16), curve="scheduler"),
            momentum=MomentumSeparation("layer1"),
        )
        self.data = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))

    def update(self) -> None:
        """One update."""
        x = self.data[torch.randint(len(self.data), (8,), generator=self.order)]
        x = x + 0.1 * torch.randn_like(x)  # from torch's own generator
        self.sampled = self.sampler.sample()
        self.optimizer.zero_grad()
        (self.model(x, self.sampled) - x.roll(1, 1)).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, and its log."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "order": self.order.get_state(),
            "torch": torch.get_rng_state(),
            "log": self.log,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.sampler.load_state_dict(state["sampler"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["torch"])
        self.log = state["log"]


def train_plain(folder: Path) -> None:
    """60 updates, with a checkpoint after every five."""
    loop, path = PlainLoop(60), folder / "last.pt"
    with contextlib.suppress(FileNotFoundError):
        loop.load_state_dict(checkpoints.load(path))
    while loop.dynamic.updates < 60:
        loop.update()
        loop.log.append([loop.dynamic.last.step, loop.sampled])
        if loop.dynamic.updates % 5 == 0:
            checkpoints.save(path, loop.state_dict())
    _end(folder, {"weights": loop.model.state_dict(), "log": loop.log})


def train_timm(folder: Path) -> None:
    """The loop of timm's train.py, 8 epochs of 3 updates with EMA and its CheckpointSaver."""
    from tests.timm.loop import Options, batches, train

    last = folder / "last.pth.tar"
    result = train(
        Options(opt="adamw", ema=True, epochs=8),
        batches(3),
        folder=folder,
        resume=str(last) if last.exists() else None,
    )
    weights = {"model": result["model"].state_dict(), "ema": result["ema"].state_dict()}
    _end(folder, {"weights": weights, "updates": result["attached"].training.updates})


def train_nni(folder: Path) -> None:
    """The training of `nas-dynamic train`: an NNI experiment, 4 epochs of 16 updates."""
    from nas_dynamic.experiment.config import parse
    from nas_dynamic.experiment.nni.supernet import train_supernet
    from nas_dynamic.experiment.run import load_data

    config = parse(
        {
            "space": {
                "name": "NasBench201",
                "kwargs": {"stem_out_channels": 4, "num_modules_per_stack": 1},
            },
            "data": {"name": "digits", "validation": 0.4, "test": 0.6},
            "epochs": 4,
            "batch_size": 27,
            "device": "cpu",
        }
    )
    data = load_data(config.data)
    trained = train_supernet(config, data, 0, progress=lambda done, total: None, folder=folder)
    log = [[row["step"], row] for row in trained.trace.rows]
    _end(folder, {"weights": trained.model.state_dict(), "log": log})


LOOPS: dict[str, Callable[[Path], None]] = {
    "plain": train_plain,
    "timm": train_timm,
    "nni": train_nni,
}


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


def memory(updates: int) -> dict[str, Any]:
    """Resident memory, in MiB, after 1,000 updates and at the end, of a training with 8 groups."""
    torch.set_num_threads(1)
    loop = PlainLoop(updates)
    early = 0.0
    for update in range(updates):
        loop.update()
        if update == 999:
            early = _resident()
    return {
        "updates": loop.dynamic.updates,
        "groups": len(loop.dynamic.groups),
        "after_1000": early,
        "at_the_end": _resident(),
    }


def measured_memory(updates: int) -> dict[str, Any]:
    """`memory` in a process of its own."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.apply(memory, (updates,))


def _start(name: str, folder: Path) -> Any:
    """A process that trains; forked from one that has imported what takes long."""
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


def _end(folder: Path, result: dict[str, Any]) -> None:
    checkpoints.save(folder / "end.pt", result)


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


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", nargs="*", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--kills", type=int, default=40, help="of each loop (default: 40)")
    parser.add_argument("--updates", type=int, default=100_000, help="0 leaves memory out")
    options = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(torch.device("cpu")), "kills": {}}
    for name in options.loops:
        with tempfile.TemporaryDirectory() as folder:
            survived = survive(name, options.kills, Path(folder))
        print(name, survived, flush=True)
        results["kills"][name] = asdict(survived)
        write_json(RESULTS, results)
    if options.updates:
        results["memory"] = measured_memory(options.updates)
        print(results["memory"])
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
