"""`nas-dynamic demo`: static and dynamic training of one supernet, held against the truth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from nas_dynamic.analysis.ranking import Estimate, kendall, spearman
from nas_dynamic.experiment.compare import standalone_scores
from nas_dynamic.experiment.config import Config, parse
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.figures import Arm, overview
from nas_dynamic.experiment.run import checked_data, device_of, run_seed
from nas_dynamic.space import architecture_text
from nas_dynamic.storage.journal import environment, write_json

__all__ = ["Demo", "print_results", "run_demo"]


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo trains, and for how long.

    Attributes:
        seeds: of the supernets; each is trained once static and once dynamic.
        epochs: of each supernet.
        standalone_epochs: of each subnet that is trained alone.
        subnets: number of subnets that are scored and trained alone.
        channels: of the first cells of NNI's NasBench201 space.
        device: as in a configuration.
        precision: as in a configuration.
    """

    seeds: Sequence[int]
    epochs: int
    standalone_epochs: int
    subnets: int
    channels: int
    device: str
    precision: str

    def config(self, *, dynamic: bool) -> Config:
        """The configuration of one arm. Static training has the usual cosine decay of the lr."""
        static_options = {"calr": False, "momentum": False, "idle": "freeze"}
        cosine = {"name": "CosineAnnealingLR", "kwargs": {"T_max": self.epochs}}
        return parse(
            {
                "name": "dynamic" if dynamic else "static",
                "space": {
                    "name": "NasBench201",
                    "kwargs": {"stem_out_channels": self.channels, "num_modules_per_stack": 1},
                },
                # Few images to train on, so that subnets differ; many to tell them apart.
                "data": {"name": "digits", "validation": 0.6, "test": 0.5},
                "optimizer": {
                    "name": "SGD",
                    "kwargs": {
                        "lr": 0.1,
                        "momentum": 0.9,
                        "weight_decay": 5e-4,
                        "nesterov": True,
                    },
                },
                "scheduler": None if dynamic else cosine,
                "dynamic": {} if dynamic else static_options,
                "scoring": {"subnets": self.subnets},
                "epochs": self.epochs,
                "batch_size": 32,
                "gradient_clip": 5.0,
                "seeds": list(self.seeds),
                "device": self.device,
                "precision": self.precision,
            }
        )


def run_demo(demo: Demo, out: Path, display: Display) -> dict[str, Any]:
    """Train, score and compare; everything is written to `out / "demo"`, over an earlier demo.

    The stand-alone accuracies are kept in `out` and serve later demos.

    Args:
        demo: what to do.
        out: folder of all runs.
        display: shows the progress.

    Returns:
        What results.json holds.
    """
    folder = out / "demo"
    configs = [demo.config(dynamic=False), demo.config(dynamic=True)]
    data = checked_data(*configs)
    _begin(folder, configs)
    arms = []
    for config in configs:
        results = []
        for seed in config.seeds:
            results.append(run_seed(config, data, seed, display, name=config.name))
            write_json(folder / config.name / f"seed-{seed}.json", results[-1])
        arms.append(Arm(config.name, results))
    subnets = arms[0].results[0]["subnets"]
    architectures = [subnet["architecture"] for subnet in subnets]
    alone = standalone_scores(configs[0], data, architectures, demo.standalone_epochs, out, display)
    truth = [score.accuracy for score in alone]
    compared = {
        arm.name: [
            _compared([subnet["accuracy"] for subnet in result["subnets"]], truth)
            for result in arm.results
        ]
        for arm in arms
    }
    summary = {
        "demo": asdict(demo),
        "configs": [config.model_dump() for config in configs],
        "environment": environment(device_of(demo.device)),
        "truth": [
            {"architecture": s["architecture"], "parameters": s["parameters"], "accuracy": t}
            for s, t in zip(subnets, truth, strict=True)
        ],
        "parameters": _compared([s["parameters"] for s in subnets], truth),
        "arms": {
            arm.name: [
                {key: result[key] for key in ("seed", "seconds", "group_by", "mean_accuracy")} | c
                for result, c in zip(arm.results, compared[arm.name], strict=True)
            ]
            for arm in arms
        },
    }
    write_json(folder / "results.json", summary)
    taus = {name: _mean_tau(of_seeds) for name, of_seeds in compared.items()}
    overview(folder / "overview.png", [replace(a, tau=taus[a.name]) for a in arms], truth)
    return summary


def _begin(folder: Path, configs: Sequence[Config]) -> None:
    """Remove the results of an earlier demo, so that a stop leaves none beside new ones."""
    for name in ("results.json", "overview.png"):
        (folder / name).unlink(missing_ok=True)
    for config in configs:
        for earlier in (folder / config.name).glob("seed-*.json"):
            earlier.unlink()
        write_json(folder / config.name / "config.json", config.model_dump(mode="json"))
        write_json(folder / config.name / "environment.json", environment(device_of(config.device)))


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print the table of a demo, and how far it can be trusted."""
    truth = [subnet["accuracy"] for subnet in results["truth"]]
    table = Table(box=box.SIMPLE_HEAD, title="Which ranking of subnets comes closest to the truth?")
    table.add_column("ranked by")
    for column in ("Kendall τ [95%]", "mean acc.", "its best, alone", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [("parameter count", results["parameters"], "", "")]
    for name, arm in results["arms"].items():
        for result in arm:
            mean, seconds = f"{result['mean_accuracy']:.1%}", f"{result['seconds']:.0f} s"
            rows.append((f"{name}, seed {result['seed']}", result, mean, seconds))
    for label, compared, mean, seconds in rows:
        best = compared["best"]
        place = f"{best['accuracy']:.1%} (no. {best['place']})"
        table.add_row(label, _interval(compared["kendall"]), mean, place, seconds)
    console.print(table)
    for name, arm in results["arms"].items():
        best = max((result["best"] for result in arm), key=lambda best: best["score"])
        found = architecture_text(results["truth"][best["index"]]["architecture"])
        console.print(f"Best of the {name} supernets: {found}", highlight=False)
    seeds = len(results["demo"]["seeds"])
    taus = {name: _mean_tau(arm) for name, arm in results["arms"].items()}
    means = ", ".join(f"{name} {tau:.3f}" for name, tau in taus.items() if tau is not None)
    console.print(
        f"\nn = {len(truth)} subnets; trained alone they reach {min(truth):.1%} to "
        f"{max(truth):.1%}, {statistics.mean(truth):.1%} on average. Mean τ over "
        f"{seeds} seed{'s' if seeds > 1 else ''}: {means}. The intervals are bootstrapped over "
        "subnets and leave out the chance of other seeds: so few seeds on so small a task show "
        "that the parts work together, not which training is better.",
        highlight=False,
    )


def _compared(predicted: Sequence[float], truth: Sequence[float]) -> dict[str, Any]:
    """Agreement of a ranking with the truth, and the subnet that it puts first."""
    index = max(range(len(predicted)), key=predicted.__getitem__)
    return {
        "kendall": _plain(kendall(predicted, truth)),
        "spearman": _plain(spearman(predicted, truth)),
        "best": {
            "index": index,
            "score": predicted[index],
            "accuracy": truth[index],
            "place": 1 + sum(other > truth[index] for other in truth),
        },
    }


def _mean_tau(compared: Sequence[dict[str, Any]]) -> float | None:
    """Of the seeds of an arm; None where it is undefined for one."""
    taus = [of_seed["kendall"]["value"] for of_seed in compared]
    return None if None in taus else statistics.mean(taus)


def _plain(correlation: Estimate) -> dict[str, float | None]:
    """JSON has no nan."""
    return {k: None if math.isnan(v) else v for k, v in asdict(correlation).items()}


def _interval(correlation: dict[str, float | None]) -> str:
    if None in correlation.values():
        return "undefined"
    return f"{correlation['value']:.2f} [{correlation['low']:.2f}, {correlation['high']:.2f}]"
