"""Reads the folders that `nas-dynamic train`, `demo` and `compare` write, finished or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nas_dynamic.report.records import (
    Comparison,
    SeedResult,
    Subnet,
    TrainedUpdate,
    read_record,
)
from nas_dynamic.space import Key, key
from nas_dynamic.storage.journal import RunError, command_text, read_json

__all__ = ["Run", "read_run", "read_runs"]

AGAIN = "remove the folder and make the run again, or restore the file from a copy"
SEED_AGAIN = (
    "remove it, and results.json beside the seed's folder if there is one; then `nas-dynamic train "
    "CONFIG --resume`, or the same `nas-dynamic compare` or `demo`, makes it again, from the "
    "seed's checkpoint where that is there"
)
COMPARE_AGAIN = "remove it, and the same `nas-dynamic compare` or `demo` makes it again"


@dataclass(frozen=True, eq=False)
class Run:
    """One configuration: the supernets of its seeds.

    Attributes:
        name: tells it from the others that were read.
        folder: that it was read from.
        config: as it was run.
        environment: versions and hardware.
        seeds: those that are finished.
        missing: seeds of the configuration that are not.
        standalone: stand-alone accuracies, as far as they are known.
        comparison: with the arm beside it, of a demo or a comparison.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    seeds: Sequence[SeedResult]
    missing: Sequence[int] = ()
    standalone: Mapping[Key, float] = field(default_factory=dict)
    comparison: Comparison | None = None

    @property
    def subnets(self) -> list[Subnet]:
        """The scored subnets, as the first seed has them; all seeds score the same ones."""
        return self.seeds[0].subnets if self.seeds else []

    @property
    def keys(self) -> list[Key]:
        """What every scored subnet is looked up by."""
        return [key(subnet.architecture) for subnet in self.subnets]

    def of_seeds(self, seeds: Sequence[int]) -> Run:
        """Return the run with these of its seeds."""
        return replace(self, seeds=[seed for seed in self.seeds if seed.seed in seeds])

    def accuracies(self) -> np.ndarray:
        """Return the accuracies in [0, 1], of shape (seeds, subnets)."""
        return np.array([[subnet.accuracy for subnet in seed.subnets] for seed in self.seeds])

    def parameters(self) -> np.ndarray:
        """Return the numbers of parameters, of shape (subnets,)."""
        return np.array([subnet.parameters for subnet in self.subnets])

    def macs(self) -> np.ndarray | None:
        """Return the multiply-accumulates, of shape (subnets,); None if one is not known."""
        macs = [subnet.macs for subnet in self.subnets if subnet.macs is not None]
        return np.array(macs) if len(macs) == len(self.subnets) else None

    def updates(self) -> list[TrainedUpdate]:
        """Return the recorded updates of all seeds."""
        return [update for seed in self.seeds for update in seed.trace]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read folders of runs; that of a demo or comparison gives two.

    Raises:
        RunError: a folder holds no run, stands twice, or has a file that is damaged.
    """
    runs = [run for folder in folders for run in _read(folder)]
    places = [run.folder.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise RunError(f"{run.folder} is given twice; give each run once")
    return _named(runs)


def read_run(folder: Path) -> Run:
    """Read the folder of a run of `nas-dynamic train`, or of one arm of a comparison."""
    config, environment = (_mapping(folder / f"{name}.json") for name in ("config", "environment"))
    seeds = [
        read_record(SeedResult, path, SEED_AGAIN) for path in folder.glob("seed-*/result.json")
    ]
    seeds.sort(key=lambda seed: seed.seed)
    for seed in seeds[1:]:
        if [s.architecture for s in seed.subnets] != [s.architecture for s in seeds[0].subnets]:
            raise RunError(
                f"{folder} has seeds {seeds[0].seed} and {seed.seed} with other subnets, so they "
                f"are not of one run; {AGAIN}"
            )
    done = [seed.seed for seed in seeds]
    missing = [seed for seed in config.get("seeds", []) if seed not in done]
    return Run(folder.name, folder, config, environment, seeds, missing)


def _read(folder: Path) -> list[Run]:
    if not folder.is_dir():
        raise RunError(
            f"{folder} is no folder; give one that nas-dynamic train, demo or compare wrote"
        )
    if (folder / "config.json").is_file():
        return [read_run(folder)]
    arms = _arms(folder)
    if not arms:
        inside = sorted(f for f in folder.glob("*/") if (f / "config.json").exists() or _arms(f))
        hint = f"; did you mean {command_text(*inside)}?" if inside else ""
        raise RunError(
            f"{folder} holds no run: there is no config.json of nas-dynamic train, demo or compare "
            f"in it{hint}"
        )
    runs = [read_run(arm) for arm in arms]
    path = folder / "compare.json"
    if not path.is_file():
        return runs
    comparison = read_record(Comparison, path, COMPARE_AGAIN)
    return [
        replace(
            run.of_seeds(comparison.seeds),
            standalone={key(s.architecture): s.accuracy for s in comparison.standalone},
            comparison=comparison,
        )
        for run in runs
    ]


def _arms(folder: Path) -> list[Path]:
    """Return the folders of the arms of a demo or comparison, the static one first."""
    arms = (folder / "static", folder / "dynamic")
    return [arm for arm in arms if (arm / "config.json").is_file()]


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path, AGAIN)
    if not isinstance(content, dict):
        raise RunError(f"{path} is not what nas-dynamic writes: no keys and values; {AGAIN}")
    return content


def _named(runs: list[Run]) -> list[Run]:
    """Return the runs with names that differ: as much of the end of each path as that takes."""
    parts = [run.folder.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
