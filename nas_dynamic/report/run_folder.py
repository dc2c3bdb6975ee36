"""Reads the folders that `nas-dynamic train`, `demo` and `compare` write, finished or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.storage.journal import RunError

with extra("experiment"):
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "Cost",
    "Pair",
    "Row",
    "Run",
    "Seed",
    "Subnet",
    "architecture_key",
    "read_json",
    "read_runs",
]

Key = tuple[tuple[str, str], ...]


class _Record(BaseModel):
    """Keys that a later version adds are passed over; those that an earlier one lacks are None."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Subnet(_Record):
    """A subnet that was scored with inherited weights."""

    architecture: dict[str, Any]
    parameters: int
    accuracy: float
    loss: float | None = None
    macs: float | None = None


class Row(_Record):
    """What one update used: see `nas_dynamic.experiment.nni.recorder.TrainingRecorder`."""

    step: int
    lr: float
    parameters: int
    gamma: float | None = None
    group: str | None = None
    loss: float | None = None


class Pair(_Record):
    """The cosine of the gradients of an update and of the next one."""

    step: int
    groups: tuple[str | None, str | None]
    cosine: float


class Cost(_Record):
    """What a training cost: see `nas_dynamic.experiment.cost.CostMeter.result`."""

    peak_memory: int | None = None
    memory_of: str = "process"
    joules: float | None = None
    energy_of: list[str] = []


class Seed(_Record):
    """One supernet, and its scored subnets; None stands for what was not recorded."""

    seed: int
    subnets: Annotated[list[Subnet], Field(min_length=1)]
    seconds: float | None = None
    group_by: str | None = None
    validation_images: int | None = None
    cost: Cost | None = None
    updates: int | None = None
    updates_by_group: dict[str, int] | None = None
    trace: list[Row] | None = None
    pairs: list[Pair] | None = None


class _TrueSubnet(_Record):
    architecture: dict[str, Any]
    accuracy: float


class _ArmsResults(_Record):
    """results.json of a demo, or compare.json; empty for one that is not finished."""

    configs: list[dict[str, Any]] = []
    environment: dict[str, Any] | None = None
    truth: list[_TrueSubnet] = []


class _TrainResults(_Record):
    """results.json of a train run."""

    config: dict[str, Any]
    environment: dict[str, Any] | None = None
    seeds: list[Seed]


@dataclass(frozen=True)
class Run:
    """One configuration: the supernets of its seeds.

    Attributes:
        name: tells it from the others that were read.
        folder: that it was read from.
        config: as it was run; None where it was not recorded.
        environment: versions and hardware; None where it was not recorded.
        seeds: those that are finished.
        missing: seeds of the configuration that are not.
        truth: architecture → accuracy of training alone, by `architecture_key`.
    """

    name: str
    folder: Path
    config: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    seeds: Sequence[Seed]
    missing: Sequence[int] = ()
    truth: Mapping[Key, float] = field(default_factory=dict)

    @property
    def subnets(self) -> list[Subnet]:
        """The scored subnets, as the first seed has them; all seeds score the same ones."""
        return self.seeds[0].subnets if self.seeds else []

    @property
    def keys(self) -> list[Key]:
        """`architecture_key` of every scored subnet."""
        return [architecture_key(subnet.architecture) for subnet in self.subnets]

    def accuracies(self) -> np.ndarray:
        """Accuracy in [0, 1], of shape (seeds, subnets)."""
        return np.array([[subnet.accuracy for subnet in seed.subnets] for seed in self.seeds])

    def parameters(self) -> np.ndarray:
        """Number of parameters, of shape (subnets,)."""
        return np.array([subnet.parameters for subnet in self.subnets])

    def macs(self) -> np.ndarray | None:
        """Multiply-accumulates, of shape (subnets,); None if they were not recorded."""
        macs = [subnet.macs for subnet in self.subnets if subnet.macs is not None]
        return np.array(macs) if len(macs) == len(self.subnets) else None

    def rows(self) -> list[Row]:
        """The recorded updates of all seeds."""
        return [row for seed in self.seeds for row in seed.trace or []]


def architecture_key(architecture: Mapping[str, Any]) -> Key:
    """What two descriptions of one architecture have in common; candidates count as text."""
    return tuple(sorted((label, str(candidate)) for label, candidate in architecture.items()))


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


def read_json(path: Path, remedy: str) -> Any:
    """Plain data from a file.

    Raises:
        RunError: it cannot be read, or is no JSON; the message ends in the remedy.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged, it is not valid JSON ({error}); {remedy}") from error


def _read(folder: Path) -> list[Run]:
    if not folder.is_dir():
        raise RunError(
            f"{folder} is no folder; give one that nas-dynamic train, demo or compare wrote"
        )
    if (folder / "config.json").is_file():
        return [_trained(folder)]
    if (folder / "static").is_dir() and (arms := _arms(folder)):
        return arms
    path = folder / "results.json"
    if path.is_file():
        results = _validated(_TrainResults, read_json(path, AGAIN), path, AGAIN)
        return [_run(folder, results.config, results.environment, results.seeds)]
    inside = sorted(child for child in folder.glob("*/") if _holds_run(child))
    hint = f"; did you mean {' '.join(map(str, inside))}?" if inside else ""
    raise RunError(
        f"{folder} holds no run: there is no config.json, and no results.json of nas-dynamic "
        f"train, demo or compare in it{hint}"
    )


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", "results.json", "static"))


AGAIN = "remove the folder and make the run again, or restore the file from a copy"
SEED_AGAIN = (
    "remove it, and results.json beside the seed's folder if there is one; then `nas-dynamic train "
    "CONFIG --resume`, or `nas-dynamic compare CONFIG` for an arm of a comparison, makes it again, "
    "from the seed's checkpoint where that is there"
)
DEMO_AGAIN = "`nas-dynamic demo` makes it again"
COMPARE_AGAIN = "remove it, and `nas-dynamic compare CONFIG` makes it again"


def _trained(folder: Path) -> Run:
    """A folder of `train`, or an arm of a demo."""
    config = _mapping(read_json(folder / "config.json", AGAIN), folder / "config.json")
    path = folder / "environment.json"
    environment = _mapping(read_json(path, AGAIN), path) if path.exists() else None
    seeds = [_seed(path, SEED_AGAIN) for path in folder.glob("seed-*/result.json")]
    seeds += [_seed(path, DEMO_AGAIN) for path in folder.glob("seed-*.json")]
    return _run(folder, config, environment, seeds)


def _arms(folder: Path) -> list[Run]:
    """The two runs of a demo or of a comparison, and their truth, which is written at the end."""
    results = _ArmsResults()
    for path, remedy in (
        (folder / "results.json", DEMO_AGAIN),
        (folder / "compare.json", COMPARE_AGAIN),
    ):
        if path.is_file():
            results = _validated(_ArmsResults, read_json(path, remedy), path, remedy)
    configs = {config.get("name"): config for config in results.configs}
    truth = {architecture_key(true.architecture): true.accuracy for true in results.truth}
    runs = []
    # Static first: the other is compared with it.
    for arm in (folder / "static", folder / "dynamic"):
        if (arm / "config.json").is_file():
            runs.append(replace(_trained(arm), truth=truth))
        elif any(arm.glob("seed-*.json")):  # of a version that recorded these at the end
            seeds = [_seed(path, DEMO_AGAIN) for path in arm.glob("seed-*.json")]
            run = _run(arm, configs.get(arm.name), results.environment, seeds)
            runs.append(replace(run, truth=truth))
    return runs


def _run(
    folder: Path,
    config: Mapping[str, Any] | None,
    environment: Mapping[str, Any] | None,
    seeds: list[Seed],
) -> Run:
    seeds = sorted(seeds, key=lambda seed: seed.seed)
    done = [seed.seed for seed in seeds]
    wanted = (config or {}).get("seeds")
    missing = [seed for seed in wanted if seed not in done] if isinstance(wanted, list) else []
    for seed in seeds[1:]:
        if [s.architecture for s in seed.subnets] != [s.architecture for s in seeds[0].subnets]:
            raise RunError(
                f"{folder} has seeds {seeds[0].seed} and {seed.seed} with other subnets, so they "
                f"are not of one run; {AGAIN}"
            )
    return Run(folder.name, folder, config, environment, seeds, missing)


def _seed(path: Path, remedy: str) -> Seed:
    return _validated(Seed, read_json(path, remedy), path, remedy)


Record = TypeVar("Record", bound=_Record)


def _validated(kind: type[Record], content: Any, path: Path, remedy: str) -> Record:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "its content"
        raise RunError(
            f"{path} is not what nas-dynamic writes: {key}: {fault['msg']}; {remedy}"
        ) from None


def _mapping(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise RunError(f"{path} is not what nas-dynamic writes: no keys and values; {AGAIN}")
    return content


def _named(runs: list[Run]) -> list[Run]:
    """Runs whose names differ: as much of the end of each path as that takes."""
    parts = [run.folder.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
