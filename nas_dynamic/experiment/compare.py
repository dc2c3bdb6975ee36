"""`nas-dynamic compare`: does dynamic training help on this space and data? Over paired seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from nas_dynamic.analysis.paired import Difference
from nas_dynamic.analysis.ranking import bias, comparable_loss, matched_tau, tau
from nas_dynamic.attach.supported import COAST_ONLY
from nas_dynamic.evaluation.scoring import Score, evaluate
from nas_dynamic.experiment.config import Config
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.nni.supernet import build_optimizer, build_subnet
from nas_dynamic.experiment.run import check_started, checked_data, device_of, kept_seed
from nas_dynamic.experiment.standalone import StandaloneScores, train_standalone
from nas_dynamic.space import Architecture
from nas_dynamic.storage.journal import RunError, environment, write_json

__all__ = ["compare", "print_comparison", "standalone_scores", "static_arm"]

ARMS = ("static", "dynamic")
# Subnets are ranked by the loss, which orders them with less noise than the accuracy does.
MEASURES = {
    "tau": "Kendall τ to training alone",
    "tau_matched": "matched τ",
    "bias": "complexity bias",
    "tau_accuracy": "Kendall τ, by the accuracy",
    "pick": "accuracy of its best, alone",
    "mean_accuracy": "mean accuracy, inherited",
    "seconds": "seconds of training",
}
ACCURACIES = ("pick", "mean_accuracy")
HALF_WIDTH = 0.05
"""Half the width of an interval of τ that would tell something on a small task."""


def static_arm(config: Config, curve: str = "cosine") -> Config:
    """The usual training: one lr for all subnets, one momentum, idle parameters left alone.

    Args:
        config: the dynamic arm.
        curve: decay of the lr, as in `CaLR`, after the warm-up of the configuration. Where the
            configuration has an lr scheduler, that one decays the lr of both arms.

    Raises:
        RunError: CaLR would warm up beside a scheduler, the curve has nothing to decay, or the
            optimizer cannot freeze.
    """
    if curve != "cosine" and _curves(config, curve) is None:
        raise RunError(
            f"the static arm cannot decay its lr by {curve}: "
            + ("both arms have the scheduler of the file" if config.scheduler else "CaLR is off")
            + "; leave the curve out"
        )
    kwargs = config.optimizer.kwargs
    if config.optimizer.name == "SGD" and kwargs.get("fused") and kwargs.get("momentum"):
        ((fused, reason),) = COAST_ONLY.items()
        raise RunError(
            "optimizer.kwargs has fused: true, and idle parameters freeze in the static arm, "
            f"which {fused} cannot: {reason}; leave fused out"
        )
    content, dynamic = config.model_dump(), config.dynamic
    content["dynamic"] |= {"calr": False, "momentum": False, "idle": "freeze"}
    if dynamic.calr and (dynamic.warmup_steps or curve != "cosine"):
        if config.scheduler is not None:
            raise RunError(
                f"dynamic.warmup_steps is {dynamic.warmup_steps} beside scheduler "
                f"{config.scheduler.name}, with which the static arm would train without a "
                "warm-up; leave warmup_steps out, or take a scheduler that warms up, such as "
                "OneCycleLR, with dynamic.curve: scheduler"
            )
        # No scheduler of a configuration has these curves after a linear warm-up; γ = 1 has, for
        # all subnets alike, of whatever complexity: these cost least to look up.
        content["dynamic"] |= {
            "calr": True,
            "gamma_max": 1.0,
            "gamma_min": 1.0,
            "curve": curve,
            "complexity": "parameters",
            "gamma_by": "complexity",
        }
    elif dynamic.calr and config.scheduler is None:
        content["scheduler"] = {
            "name": "CosineAnnealingLR",
            "kwargs": {"T_max": config.epochs or config.steps},
            "interval": "epoch" if config.epochs else "step",
        }
    return Config.model_validate(content)


def compare(
    config: Config,
    out: Path,
    display: Display,
    *,
    seeds: Sequence[int],
    standalone_epochs: int,
    static_curve: str = "cosine",
) -> dict[str, Any]:
    """Train, score and compare both arms over paired seeds; what is there already is kept.

    In the folder `out / (name + "-compare")` each arm has a folder like that of a run. A later
    comparison of the same configuration with more seeds goes on from it.

    Args:
        config: the dynamic arm; `static_arm` makes the other one of it.
        out: folder of all runs.
        display: shows the progress.
        seeds: of the supernets, in place of those of the configuration.
        standalone_epochs: for which each scored subnet is trained alone, as the truth.
        static_curve: decay of the static arm's lr.

    Returns:
        What compare.json holds: seeds, the truth, decay curves, measures of each arm, the measure
        of parameters, and the differences with their intervals.

    Raises:
        RunError: the configuration is static itself; the folder was started with another one.
        ConfigError: an arm cannot be trained; nothing is written.
    """
    if not (config.dynamic.calr or config.dynamic.momentum):
        raise RunError("dynamic.calr and dynamic.momentum are off: there is nothing to compare")
    folder = out / f"{config.name}-compare"
    arms = {"static": static_arm(config, static_curve), "dynamic": config}
    for name, arm in arms.items():
        arms[name] = arm = arm.model_copy(update={"name": f"{config.name}-{name}"})
        if (folder / name / "config.json").exists():
            check_started(folder / name, arm.model_dump(mode="json"), but=["seeds"])
    data = checked_data(*arms.values())
    for name, arm in arms.items():
        _begin(folder / name, arm, seeds)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for seed in seeds:
        for name, arm in arms.items():
            results[name].append(kept_seed(arm, data, seed, display, folder / name, name=name))
    subnets = results["static"][0]["subnets"]
    architectures = [subnet["architecture"] for subnet in subnets]
    alone = standalone_scores(config, data, architectures, standalone_epochs, out, display)
    truth = [score.accuracy for score in alone]
    measured = {
        name: {
            measure: [_measures(result, _array(truth))[measure] for result in of_seeds]
            for measure in MEASURES
        }
        for name, of_seeds in results.items()
    }
    comparison = {
        "name": config.name,
        "seeds": list(seeds),
        "subnets": len(truth),
        "standalone_epochs": standalone_epochs,
        "alone": [min(truth), max(truth)],
        "curves": _curves(config, static_curve),
        "truth": [
            {"architecture": architecture, "accuracy": accuracy}
            for architecture, accuracy in zip(architectures, truth, strict=True)
        ],
        "tau_of_parameters": _plain(tau(_array(s["parameters"] for s in subnets), _array(truth))),
        "arms": measured,
        "differences": {m: _difference(measured, m) for m in MEASURES},
    }
    write_json(folder / "compare.json", comparison)
    return comparison


def standalone_scores(
    config: Config,
    data: ImageData,
    architectures: Iterable[Architecture],
    epochs: int,
    folder: Path,
    display: Display,
    *,
    on: Literal["test", "validation"] = "test",
    seed: int = 0,
) -> list[Score]:
    """Score of every architecture when it is trained alone.

    Args:
        config: space, optimizer, batch size, precision and device.
        data: the images.
        architectures: what to train.
        epochs: of each.
        folder: the scores are kept there, and serve whatever has the same settings.
        display: shows the progress.
        on: images that are scored; those of validation to choose by.
        seed: of the weights and of the order of the images.
    """
    device = device_of(config.device)

    def measure(architecture: Architecture) -> tuple[float, float]:
        torch.manual_seed(seed)
        model = build_subnet(config, data.classes, architecture).to(device)
        train_standalone(
            model,
            data.train,
            build_optimizer(config, model.parameters()),
            epochs=epochs,
            batch_size=config.batch_size,
            precision=config.precision,
            seed=seed,
        )
        images = batch_loader(getattr(data, on), config.scoring.batch_size)
        return evaluate(model, images, precision=config.precision)

    depends_on = {
        "epochs": epochs,
        "on": on,
        "seed": seed,
        "device": device.type,
        "torch": torch.__version__,
        **config.model_dump(
            include={"space", "data", "optimizer", "batch_size", "precision"}, mode="json"
        ),
    }
    truth = StandaloneScores(folder, depends_on, measure)
    progress = display.work("train subnets alone")
    scores: list[Score] = []
    for architecture in (wanted := list(architectures)):
        scores.append(truth(architecture))
        progress(len(scores), len(wanted))
    return scores


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print the arms side by side, their difference with its interval, and what that tells."""
    n = len(comparison["seeds"])
    table = Table(box=box.SIMPLE_HEAD, title=f"{comparison['name']}: static or dynamic training?")
    table.add_column(f"mean of {n} seeds" if n > 1 else "one seed")
    for column in (*ARMS, "difference [95%]"):
        table.add_column(column, justify="right", no_wrap=True)
    for measure, title in MEASURES.items():
        of_arms = [comparison["arms"][name][measure] for name in ARMS]
        if any(None in values for values in of_arms):
            table.add_row(title, *["undefined"] * 3)
            continue
        means = [float(np.mean(values)) for values in of_arms]
        found = comparison["differences"][measure]
        text = _number(measure, found["mean"], "+")
        if found["low"] is not None:
            low, high = (_number(measure, found[end], "+") for end in ("low", "high"))
            text += f" [{low}, {high}]"
        table.add_row(title, *[_number(measure, mean) for mean in means], text)
    baseline = comparison["tau_of_parameters"]
    table.add_row(
        "Kendall τ of the parameter count", "" if baseline is None else f"{baseline:.3f}", "", ""
    )
    console.print(table)
    console.print(
        "Ranked by the loss, but for the one line. Matched τ: among subnets of like size. "
        "Complexity bias: above 0, small subnets are ranked too high.\n"
    )
    console.print(_verdict(comparison), highlight=False)


def _verdict(comparison: dict[str, Any]) -> str:
    seeds, found = comparison["seeds"], comparison["differences"]["tau"]
    low, high = comparison["alone"]
    text = (
        f"{comparison['subnets']} subnets; trained alone for {comparison['standalone_epochs']} "
        f"epochs they reach {low:.1%} to {high:.1%}. The intervals are over {len(seeds)} paired "
        "seeds (Student's t). "
    )
    if found["mean"] is None:
        return text + "A ranking is undefined: all its subnets score the same."
    if found["low"] is None:
        return text + "One seed tells nothing about the next one: run more."
    if found["low"] > 0:
        return text + "Dynamic training ranks these subnets better." + _of_curves(comparison)
    if found["high"] < 0:
        return (
            text
            + "Dynamic training ranks these subnets worse at this budget."
            + _of_curves(comparison)
        )
    more = found["seeds_needed"]
    return text + (
        "The interval of τ's difference holds 0: these seeds do not tell which training ranks "
        "better. "
        + (
            f"At this spread about {more} seeds would give ±{HALF_WIDTH:g}; what is trained "
            "already is kept."
            if more > len(seeds)
            else "If there is a difference, it is small."
        )
    )


def _curves(config: Config, static_curve: str) -> dict[str, str] | None:
    """Decay of the lr in each arm; None where both have that of a scheduler, or of none."""
    if config.scheduler is not None or not config.dynamic.calr:
        return None
    return {"static": static_curve, "dynamic": config.dynamic.curve}


def _of_curves(comparison: dict[str, Any]) -> str:
    curves = comparison["curves"]
    if curves is None or curves["static"] == curves["dynamic"]:
        return ""
    return (
        f" The arms differ in the decay curve as well, {curves['static']} and "
        f"{curves['dynamic']}: --static-curve {curves['dynamic']}, with another --out, tells how "
        "much of it that is."
    )


def _measures(result: dict[str, Any], truth: np.ndarray) -> dict[str, float | None]:
    accuracies, sizes = (
        _array(subnet[key] for subnet in result["subnets"]) for key in ("accuracy", "parameters")
    )
    ranking = -_array(comparable_loss(subnet["loss"]) for subnet in result["subnets"])
    return {
        "tau": _plain(tau(ranking, truth)),
        "tau_matched": _plain(matched_tau(ranking, truth, sizes)),
        "bias": _plain(bias(ranking, truth, sizes)),
        "tau_accuracy": _plain(tau(accuracies, truth)),
        "pick": float(truth[ranking.argmax()]),
        "mean_accuracy": result["mean_accuracy"],
        "seconds": result["seconds"],
    }


def _difference(measured: dict[str, dict[str, list[Any]]], measure: str) -> dict[str, Any]:
    static, dynamic = (measured[name][measure] for name in ARMS)
    if None in static + dynamic:
        return {"mean": None, "low": None, "high": None, "seeds_needed": None}
    difference = Difference(_array(dynamic) - _array(static))
    low, high = difference.t_interval()
    return {
        "mean": difference.mean,
        "low": _plain(low),
        "high": _plain(high),
        "seeds_needed": difference.seeds_needed(HALF_WIDTH) if measure == "tau" else None,
    }


def _begin(folder: Path, config: Config, seeds: Sequence[int]) -> None:
    """Begin the folder of an arm, or go on with it for more seeds."""
    path = folder / "config.json"
    if path.exists():
        seeds = sorted({*seeds, *json.loads(path.read_text())["seeds"]})
    write_json(folder / "environment.json", environment(device_of(config.device)))
    write_json(path, config.model_dump(mode="json") | {"seeds": list(seeds)})


def _number(measure: str, value: float, sign: str = "") -> str:
    if measure == "seconds":
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.1%}" if measure in ACCURACIES else f"{value:{sign}.3f}"


def _array(values: Iterable[float]) -> np.ndarray:
    return np.array(list(values), dtype=float)


def _plain(value: float) -> float | None:
    """JSON has neither nan nor infinity."""
    return float(value) if math.isfinite(value) else None
