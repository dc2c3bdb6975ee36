"""`nas-dynamic compare`: does dynamic training help on this space and data? Over paired seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_dynamic.attach.supported import COAST_ONLY
from nas_dynamic.evaluation.scoring import Score
from nas_dynamic.experiment.config import Config, parse
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.engine import Engine
from nas_dynamic.experiment.run import checked_data, differences_to_start, run_seeds
from nas_dynamic.experiment.standalone import standalone_scores
from nas_dynamic.report import measures
from nas_dynamic.report.records import Comparison, Subnet
from nas_dynamic.report.run_folder import read_run
from nas_dynamic.report.tables import compared
from nas_dynamic.report.verdict import verdict
from nas_dynamic.space import key
from nas_dynamic.storage.journal import RunError, check_writable, environment, write_json

__all__ = ["begin_arm", "compare", "print_comparison", "static_arm"]


def static_arm(config: Config, curve: str = "cosine") -> Config:
    """Return the usual training: one lr for all subnets, one momentum, idle parameters left alone.

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
    return parse(content)


def compare(
    config: Config,
    folder: Path,
    engine: Engine,
    *,
    seeds: Sequence[int],
    standalone_epochs: int,
    kept: Path,
    static_curve: str = "cosine",
) -> Comparison:
    """Train, score and compare both arms over paired seeds; what is there already is kept.

    In the folder each arm has one like that of a run. A later comparison of the same configuration
    with more seeds goes on from it.

    Args:
        config: the dynamic arm; `static_arm` makes the other one of it.
        folder: of the comparison.
        engine: trains the supernets and the subnets.
        seeds: of the supernets, in place of those of the configuration.
        standalone_epochs: for which each scored subnet is trained alone.
        kept: folder that the stand-alone scores are kept in.
        static_curve: decay of the static arm's lr.

    Returns:
        What compare.json holds.

    Raises:
        RunError: the configuration is static itself; the folder was started with another one.
        ConfigError: an arm cannot be trained; nothing is written.
    """
    if not config.dynamic.calr and config.dynamic.momentum is False:
        raise RunError("dynamic.calr and dynamic.momentum are off: there is nothing to compare")
    arms = {"static": static_arm(config, static_curve), "dynamic": config}
    for name, arm in arms.items():
        arms[name] = arm.model_copy(update={"name": f"{config.name}-{name}", "seeds": list(seeds)})
    check_writable(folder)
    data = checked_data(*arms.values())
    others = [differences_to_start(folder / name, arm, but=["seeds"]) for name, arm in arms.items()]
    if any(others):
        raise RunError(next(filter(None, others)))
    # A stop leaves no earlier comparison beside new results.
    (folder / "compare.json").unlink(missing_ok=True)
    for name, arm in arms.items():
        begin_arm(folder / name, arm)
    run_seeds({folder / name: arm for name, arm in arms.items()}, data, engine)
    runs = [read_run(folder / name).of_seeds(seeds) for name in arms]
    architectures = [subnet.architecture for subnet in runs[0].subnets]
    scores = standalone_scores(config, data, architectures, standalone_epochs, kept, engine)
    known = {key(score.architecture): score.accuracy for score in scores}
    static, dynamic = (replace(run, standalone=known) for run in runs)
    found = measures.compare(static, dynamic)
    assert found is not None  # both arms have the seeds, and score the same subnets
    more: dict[str, Any] = {
        "standalone": [_sized(subnet, s) for subnet, s in zip(static.subnets, scores, strict=True)],
        "standalone_epochs": standalone_epochs,
        "curves": _curves(config, static_curve),
    }
    comparison = found.model_copy(update=more)
    write_json(folder / "compare.json", comparison.model_dump(mode="json"))
    return comparison


def print_comparison(comparison: Comparison, display: Display) -> None:
    """Print the arms side by side, their difference with its interval, and what that tells."""
    display.table(compared(comparison))
    display.say(verdict(comparison))


def begin_arm(folder: Path, config: Config) -> None:
    """Begin the folder of an arm, or go on with it for more seeds."""
    started = read_run(folder).config["seeds"] if (folder / "config.json").exists() else []
    seeds = sorted({*config.seeds, *started})
    write_json(folder / "environment.json", environment(config.torch_device))
    write_json(folder / "config.json", config.model_dump(mode="json") | {"seeds": seeds})


def _sized(subnet: Subnet, score: Score) -> Subnet:
    """Return a subnet with its stand-alone score."""
    return replace(subnet, accuracy=score.accuracy, loss=score.loss)


def _curves(config: Config, static_curve: str) -> dict[str, str] | None:
    """Return the decay of the lr in each arm; None where both have that of a scheduler, or none."""
    if config.scheduler is not None or not config.dynamic.calr:
        return None
    return {"static": static_curve, "dynamic": str(config.dynamic.curve)}
