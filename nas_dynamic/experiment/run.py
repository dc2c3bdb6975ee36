"""One configured run: train a supernet, score its subnets, write down what came out."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nas_dynamic.experiment.config import Config, refusing
from nas_dynamic.experiment.config import Data as DataConfig
from nas_dynamic.experiment.data import ImageData
from nas_dynamic.experiment.data_sets import digits, image_folder, torchvision_set
from nas_dynamic.experiment.engine import Engine, Place
from nas_dynamic.experiment.nni.preflight import check_trainable
from nas_dynamic.experiment.nni.supernet import TrainedSupernet, train_supernet
from nas_dynamic.experiment.scores import SubnetScorer
from nas_dynamic.report.records import SeedResult, Subnet
from nas_dynamic.report.run_folder import AGAIN, Run, read_run
from nas_dynamic.space import Architecture, Key, SearchSpace, key
from nas_dynamic.storage.journal import (
    RunError,
    check_writable,
    environment,
    read_json,
    write_json,
)

__all__ = [
    "begin",
    "checked_data",
    "differences_to_start",
    "load_data",
    "run",
    "run_seeds",
    "sample_architectures",
]


def run(config: Config, out: Path, engine: Engine, *, resume: bool = False) -> Run:
    """Train and score every seed of a configuration, in the folder `out / config.name`.

    The folder holds config.json and environment.json from the start, which is once the
    configuration is known to be trainable; of each seed last.ckpt, scores.jsonl and result.json;
    results.json at the end.

    Args:
        config: what to run.
        out: folder of all runs.
        engine: trains and scores the seeds.
        resume: go on with the run that the folder holds.

    Raises:
        RunError: the folder holds a finished run; an unfinished one without `resume`; or one of
            another configuration.
        ConfigError: the configuration cannot be trained; nothing is written.
    """
    folder = out / config.name
    check_writable(folder)
    data = checked_data(config)
    _check_folder(folder, config, resume)
    begin(folder, config)
    run_seeds({folder: config}, data, engine)
    finished = read_run(folder)
    summary = {
        "config": finished.config,
        "environment": finished.environment,
        "seeds": [s.model_dump(mode="json", exclude={"trace", "pairs"}) for s in finished.seeds],
    }
    write_json(folder / "results.json", summary)
    return finished


def run_seeds(runs: Mapping[Path, Config], data: ImageData, engine: Engine) -> None:
    """Train and score every seed of some runs; what is in their folders already is kept.

    Args:
        runs: folder of the run → its configuration; all have the same number of seeds.
        data: the images of all of them.
        engine: trains and scores the seeds, of several runs one after the other's.
    """
    seeds = {}
    for of_runs in zip(*(config.seeds for config in runs.values()), strict=True):
        for (folder, config), seed in zip(runs.items(), of_runs, strict=True):
            label = f"{folder.name} seed {seed}" if len(runs) > 1 else f"seed {seed}"
            seeds[folder / f"seed-{seed}"] = (config, seed, label)
    missing = {f: seed for f, seed in seeds.items() if not (f / "result.json").exists()}
    for _ in engine.map(partial(_run_seed, data), missing.values(), missing):
        pass


def _run_seed(data: ImageData, of_seed: tuple[Config, int, str], place: Place) -> None:
    """Train one supernet, score a sample of its subnets, and write the result.json of the seed."""
    (config, seed, label), folder = of_seed, place.folder
    assert folder is not None
    trained = train_supernet(
        config, data, seed, progress=place.work(f"train {label}"), folder=folder
    )
    space, parameters = trained.supernet.space, trained.supernet.subnet_parameters()
    architectures = sample_architectures(space, config.scoring.subnets, config.scoring.seed)
    macs = _macs(trained, architectures)
    progress, scores = place.work(f"score {label}"), {}
    for scored in SubnetScorer(trained.supernet, config, data, folder)(architectures):
        scores[key(scored.architecture)] = scored
        progress(len(scores), len(architectures))
    recorder = trained.recorder
    result = SeedResult.model_validate(
        {
            "seed": seed,
            "subnets": [
                Subnet(a, scores[key(a)].accuracy, scores[key(a)].loss, parameters(a), m)
                for a, m in zip(architectures, macs, strict=True)
            ],
            "validation_images": len(data.validation),
            "group_by": recorder.group_by,
            "cost": recorder.cost,
            "updates": recorder.updates,
            "updates_by_group": dict(recorder.groups),
            "trace": recorder.rows,
            "pairs": recorder.pairs,
        }
    )
    write_json(folder / "result.json", result.model_dump(mode="json"))


def _macs(trained: TrainedSupernet, architectures: Sequence[Architecture]) -> list[float | None]:
    """Return the MACs of architectures; a training is not lost for what torch cannot count."""
    try:
        return [trained.macs(architecture) for architecture in architectures]
    except RuntimeError as error:  # what torch raises where meta tensors do not do
        warnings.warn(f"the MACs of subnets are not recorded: {error}", stacklevel=2)
        return [None] * len(architectures)


def checked_data(*configs: Config) -> ImageData:
    """Return the images of configurations that share them, once all are known to be trainable.

    Raises:
        ConfigError: one of them is not.
        FileNotFoundError: the images are not there.
    """
    data = load_data(configs[0].data)
    for config in configs:
        check_trainable(config, data)
    return data


def load_data(config: DataConfig) -> ImageData:
    """Return the images that a configuration names."""
    split: dict[str, Any] = {
        "validation": config.validation,
        "seed": config.seed,
        "augment": config.augment,
    }
    with refusing("data"):
        if config.name == "digits":
            return digits(config.validation, config.test, config.seed)
        if config.name == "ImageFolder":
            return image_folder(config.root, config.size, **split)
        return torchvision_set(config.name, config.root, download=config.download, **split)


def sample_architectures(space: SearchSpace, count: int, seed: int) -> list[dict[str, Hashable]]:
    """Return different architectures, drawn uniformly; the whole space where it has no more."""
    if space.size <= count:
        return list(space)
    generator = np.random.default_rng(seed)
    drawn: dict[Key, dict[str, Hashable]] = {}
    while len(drawn) < count:
        architecture = space.sample(generator)
        drawn[key(architecture)] = architecture
    return list(drawn.values())


def _check_folder(folder: Path, config: Config, resume: bool) -> None:
    """Check that a run can begin in a folder, or be gone on with."""
    if not (folder / "config.json").exists():
        return
    if (folder / "results.json").exists():
        raise RunError(
            f"{folder} holds a finished run, which is not overwritten; choose another name, "
            "another --out, or remove the folder"
        )
    if not resume:
        raise RunError(
            f"{folder} holds an unfinished run; go on with it by --resume, choose another name, "
            "or remove the folder"
        )
    differing = differences_to_start(folder, config)
    if differing:
        raise RunError(differing)


def begin(folder: Path, config: Config) -> None:
    """Write down what is run, and where, if the folder does not say it yet."""
    if not (folder / "config.json").exists():
        write_json(folder / "environment.json", environment(config.torch_device))
        write_json(folder / "config.json", config.model_dump(mode="json"))


def differences_to_start(folder: Path, config: Config, *, but: Collection[str] = ()) -> str:
    """Return what of a configuration differs from the one that a folder was started with.

    Some keys are left aside. Nothing differs in a folder that was not started.
    """
    path = folder / "config.json"
    if not path.exists():
        return ""
    started, wanted = read_json(path, AGAIN), config.model_dump(mode="json")
    differing = [k for k in wanted if k not in but and wanted[k] != started.get(k)]
    if not differing:
        return ""
    return (
        f"{folder} was started with another configuration, so it cannot be gone on with: "
        + "; ".join(f"{k} was {started.get(k)} and is {wanted[k]}" for k in differing)
        + ". Choose another name, another --out, or remove the folder"
    )
