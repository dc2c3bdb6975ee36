"""One configured run: train a supernet, score its subnets, write down what came out."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nas_dynamic.adapters.nni import activate
from nas_dynamic.analysis.ranking import comparable_loss
from nas_dynamic.evaluation.score_cache import digest, kept_scores
from nas_dynamic.evaluation.scoring import Score, score_subnets
from nas_dynamic.experiment.config import Config, refusing
from nas_dynamic.experiment.config import Data as DataConfig
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.data import ImageData, batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits, image_folder, torchvision_set
from nas_dynamic.experiment.figures import Arm, overview
from nas_dynamic.experiment.nni.preflight import check_trainable
from nas_dynamic.experiment.nni.supernet import TrainedSupernet, train_supernet
from nas_dynamic.space import Architecture, SearchSpace, candidate_from_json
from nas_dynamic.storage.journal import RunError, environment, write_json

__all__ = [
    "check_started",
    "checked_data",
    "device_of",
    "kept_seed",
    "load_data",
    "print_results",
    "run",
    "run_seed",
    "sample_architectures",
    "score",
]

Key = tuple[tuple[str, Hashable], ...]


def run(config: Config, out: Path, display: Display, *, resume: bool = False) -> dict[str, Any]:
    """Train and score every seed of a configuration, in the folder `out / config.name`.

    The folder holds config.json and environment.json from the start, which is once the
    configuration is known to be trainable; of each seed last.ckpt, scores.jsonl and result.json;
    results.json and overview.png at the end.

    Args:
        config: what to run.
        out: folder of all runs.
        display: shows the progress.
        resume: go on with the run that the folder holds.

    Returns:
        What results.json holds.

    Raises:
        RunError: the folder holds a finished run; an unfinished one without `resume`; or one of
            another configuration.
        ConfigError: the configuration cannot be trained; nothing is written.
    """
    folder = out / config.name
    _check_folder(folder, config, resume)
    data = checked_data(config)
    _begin(folder, config)
    results = [kept_seed(config, data, seed, display, folder) for seed in config.seeds]
    overview(folder / "overview.png", [Arm(config.name, results)])
    summary = {
        "config": config.model_dump(),
        "environment": environment(device_of(config.device)),
        "seeds": [
            {k: v for k, v in result.items() if k not in ("trace", "pairs")} for result in results
        ],
    }
    write_json(folder / "results.json", summary)
    return summary


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print what a run found."""
    table = Table(title=f"{results['config']['name']}: subnets with inherited weights")
    for column in ("seed", "mean accuracy", "best accuracy", "its parameters", "training"):
        table.add_column(column, justify="right")
    for result in results["seeds"]:
        best = result["best"]
        table.add_row(
            str(result["seed"]),
            f"{result['mean_accuracy']:.1%}",
            f"{best['accuracy']:.1%}",
            f"{best['parameters']:,}",
            f"{result['seconds']:.0f} s",
        )
    console.print(table)


def kept_seed(
    config: Config,
    data: ImageData,
    seed: int,
    display: Display,
    folder: Path,
    *,
    name: str = "",
) -> dict[str, Any]:
    """What `run_seed` gives, from the folder of a run if it is there, and else put there."""
    path = folder / f"seed-{seed}" / "result.json"
    if not path.exists():
        result = run_seed(config, data, seed, display, checkpoints=path.parent, name=name)
        write_json(path, result)
    result = json.loads(path.read_text())
    for subnet in (result["best"], *result["subnets"]):
        subnet["architecture"] = {
            label: candidate_from_json(value) for label, value in subnet["architecture"].items()
        }
    return result


def run_seed(
    config: Config,
    data: ImageData,
    seed: int,
    display: Display,
    *,
    checkpoints: Path | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Train one supernet and score a sample of its subnets.

    Returns:
        Plain data: seed, seconds of training, group_by, mean_accuracy, best and subnets (each an
        architecture with parameters, accuracy and loss), and the trace of the training.
    """
    label = f"{name} seed {seed}".strip()
    trained = train_supernet(
        config, data, seed, progress=display.work(f"train {label}"), folder=checkpoints
    )
    architectures = sample_architectures(trained.space, config.scoring.subnets, config.scoring.seed)
    macs = _macs(trained, architectures)
    progress = display.work(f"score {label}")
    scores: dict[Key, Score] = {}
    for scored in score(trained, config, data, architectures, folder=checkpoints):
        scores[tuple(scored.architecture.items())] = scored
        progress(len(scores), len(architectures))
    subnets = [
        {
            "architecture": architecture,
            "parameters": trained.parameters(architecture),
            "macs": subnet_macs,
            "accuracy": scores[tuple(architecture.items())].accuracy,
            "loss": scores[tuple(architecture.items())].loss,
        }
        for architecture, subnet_macs in zip(architectures, macs, strict=True)
    ]
    trace = trained.trace
    return {
        "seed": seed,
        "seconds": trace.cost["seconds"],
        "group_by": trace.group_by,
        "mean_accuracy": statistics.mean(subnet["accuracy"] for subnet in subnets),
        "best": max(
            subnets, key=lambda subnet: (subnet["accuracy"], -comparable_loss(subnet["loss"]))
        ),
        "subnets": subnets,
        "validation_images": len(data.validation),
        "cost": trace.cost,
        "updates": trace.updates,
        "updates_by_group": dict(trace.groups),
        "trace": trace.rows,
        "pairs": trace.pairs,
    }


def _macs(trained: TrainedSupernet, architectures: Iterable[Architecture]) -> list[float | None]:
    """MACs of each architecture; a training is not lost for what torch cannot count."""
    architectures = list(architectures)
    try:
        return [trained.macs(architecture) for architecture in architectures]
    except RuntimeError as error:  # what torch raises where meta tensors do not do
        warnings.warn(f"the MACs of subnets are not recorded: {error}", stacklevel=2)
        return [None] * len(architectures)


def checked_data(*configs: Config) -> ImageData:
    """The images of configurations that share them, once all of these are known to be trainable.

    Raises:
        ConfigError: one of them is not.
        FileNotFoundError: the images are not there.
    """
    data = load_data(configs[0].data)
    for config in configs:
        check_trainable(config, data, device_of(config.device))
    return data


def load_data(config: DataConfig) -> ImageData:
    """The images that a configuration names."""
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


def device_of(name: str) -> torch.device:
    """The device of a configuration; `auto` is an accelerator if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def sample_architectures(space: SearchSpace, count: int, seed: int) -> list[dict[str, Hashable]]:
    """Different architectures, drawn uniformly; the whole space where it has no more."""
    if space.size <= count:
        return list(space)
    generator = np.random.default_rng(seed)
    drawn: dict[tuple[Hashable, ...], dict[str, Hashable]] = {}
    while len(drawn) < count:
        architecture = space.sample(generator)
        drawn[tuple(architecture.values())] = architecture
    return list(drawn.values())


def score(
    trained: TrainedSupernet,
    config: Config,
    data: ImageData,
    architectures: Sequence[Architecture],
    *,
    folder: Path | None = None,
) -> Iterator[Score]:
    """Score subnets of a trained supernet on the validation images.

    Args:
        trained: the supernet.
        config: of the run.
        data: of the run.
        architectures: the subnets.
        folder: scores are kept in its scores.jsonl, and those that are there are not made again.

    Yields:
        Scores in the order of the subnets; with `folder`, those that are there come first.
    """
    options, device = config.scoring, device_of(config.device)
    supernet = trained.model.to(device)

    def score_missing(missing: Iterable[Architecture]) -> Iterator[Score]:
        loader = batch_loader(data.validation, options.batch_size, workers=config.data.workers)
        return score_subnets(
            supernet,
            activate,
            missing,
            loader,
            batch_norm=options.batch_norm,
            calibration=calibration_batches(
                data.train, config.batch_size, options.calibration_batches, options.seed
            ),
            precision=config.precision,
        )

    if folder is None:
        return score_missing(architectures)
    depends_on = {
        "supernet": digest(supernet),
        "scoring": options.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "batch_size": config.batch_size,
        "precision": config.precision,
    }
    return kept_scores(folder / "scores.jsonl", depends_on, architectures, score_missing)


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
    check_started(folder, config.model_dump(mode="json"))


def _begin(folder: Path, config: Config) -> None:
    if not (folder / "config.json").exists():
        write_json(folder / "environment.json", environment(device_of(config.device)))
        write_json(folder / "config.json", config.model_dump(mode="json"))


def check_started(folder: Path, wanted: dict[str, Any], *, but: Collection[str] = ()) -> None:
    """Check that a folder was started with this configuration, some keys left aside.

    Raises:
        RunError: it was started with another one.
    """
    started = json.loads((folder / "config.json").read_text())
    differing = [key for key in wanted if key not in but and wanted[key] != started.get(key)]
    if differing:
        raise RunError(
            f"{folder} was started with another configuration, so it cannot be gone on with: "
            + "; ".join(f"{k} was {started.get(k)} and is {wanted[k]}" for k in differing)
            + ". Choose another name, another --out, or remove the folder"
        )
