"""`nas-dynamic demo`: what can be shown in minutes, from a space to a network."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from nas_dynamic.analysis.ranking import Estimate
from nas_dynamic.experiment.config import Config, parse
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.engine import LocalEngine
from nas_dynamic.experiment.export import chosen_architecture, export_subnet
from nas_dynamic.experiment.load import load_run
from nas_dynamic.experiment.run import begin, checked_data, differences_to_start, run_seeds
from nas_dynamic.experiment.search import found_table, search_run
from nas_dynamic.experiment.update_cost import update_cost
from nas_dynamic.report.records import SeedResult
from nas_dynamic.report.tables import Table, exported
from nas_dynamic.storage.journal import check_writable

__all__ = ["demo", "demo_config", "measured_elsewhere"]

AT = (0.0, 0.25, 0.5, 0.75, 0.95)
"""Shares of the training at which the lr is shown, each over a tenth of the training."""


def demo_config(
    *,
    epochs: int = 100,
    channels: int = 4,
    device: str = "cpu",
    precision: str = "32",
    subnets: int = 100,
) -> Config:
    """Return the configuration of the demo: NNI's NasBench201, at small size, on digits.

    Args:
        epochs: of the supernet.
        channels: of the first cells.
        device: as in a configuration.
        precision: as in a configuration.
        subnets: that are scored after the training.
    """
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    return parse(
        {
            "name": "demo",
            "space": {
                "name": "NasBench201",
                "kwargs": {"stem_out_channels": channels, "num_modules_per_stack": 1},
            },
            # Few images to train on, so that subnets differ; many to tell them apart.
            "data": {"name": "digits", "validation": 0.6, "test": 0.5},
            "optimizer": {"name": "SGD", "kwargs": sgd},
            "scoring": {"subnets": subnets},
            "epochs": epochs,
            "batch_size": 32,
            "gradient_clip": 5.0,
            "device": device,
            "precision": precision,
        }
    )


def demo(config: Config, folder: Path, display: Display, *, seed: int, budget: int) -> list[Path]:
    """Train, say what the updates did and cost, search, and take a network away.

    A demo that was stopped goes on; one of another configuration takes the place of the earlier.

    Args:
        config: `demo_config`.
        folder: of the run.
        display: shows the progress, and what was found.
        seed: of the training.
        budget: of the search.

    Returns:
        The files of the exported network.

    Raises:
        ConfigError: the configuration cannot be trained; nothing is written.
    """
    config = config.model_copy(update={"seeds": [seed]})
    check_writable(folder)
    data = checked_data(config)
    if differences_to_start(folder, config):
        shutil.rmtree(folder)
    begin(folder, config)
    with display:
        engine = LocalEngine(display.work)
        run_seeds({folder: config}, data, engine)
        run = load_run(folder, seed)
        cost = update_cost(config, data, run.supernet, display.work("time updates"))
        middle = sorted(subnet.parameters for subnet in run.result.subnets)[
            len(run.result.subnets) // 2
        ]
        found = search_run(run, display, engine, limits={"parameters": middle}, budget=budget)
        architecture, reason = chosen_architecture(run)
        description, files = export_subnet(run, architecture, folder / "export")
    display.heading("1  What the training did")
    display.table(learning_rates(run.result))
    display.heading("2  What it costs")
    display.say(
        f"An update takes {cost.static:.1f} ms as usual. Dynamic training adds "
        f"{cost.more['freeze']:+.2f} ms; and {cost.more['coast']:+.2f} ms where idle parameters "
        f"coast, as published, for then the optimizer moves all {cost.tensors} tensors of the "
        f"supernet in place of the subnet's (means of {cost.more['coast'].count} updates, one "
        "thread)."
    )
    display.heading(f"3  A network found, of {middle:,} parameters at most, and taken away")
    display.table(found_table(run, found, {"parameters": middle}))
    display.say(exported(description, reason))
    display.heading("4  Does it help? Measured elsewhere, not by this demo")
    display.table(measured_elsewhere())
    return files


def learning_rates(result: SeedResult) -> Table:
    """Return the mean lr over the training, of updates of small, middling and large subnets."""
    sizes = np.array([update.parameters for update in result.trace])
    steps = np.array([update.step for update in result.trace]) / result.updates
    lrs = np.array([update.lr for update in result.trace])
    low, high = np.quantile(sizes, [0.2, 0.8])
    parts = {
        "smallest fifth": sizes <= low,
        "between": (sizes > low) & (sizes < high),
        "largest fifth": sizes >= high,
    }
    rows = []
    for at in AT:
        near = np.abs(steps - at) <= 0.05
        cells = [lrs[near & part] for part in parts.values()]
        rows.append([f"{at:.0%}", *(f"{part.mean():.4f}" if len(part) else "–" for part in cells)])
    return Table(
        "Mean lr of the updates, by the size of the subnet that they trained",
        ["of the training", *parts],
        rows,
        "Small subnets anneal early, large ones keep learning; the usual training has one lr for "
        "all of them.",
    )


def measured_elsewhere() -> Table:
    """Return the differences that a benchmark of the repository has measured."""
    path = resources.files("nas_dynamic.experiment") / "measured.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            row["size"],
            row["against"].removeprefix("static training, ").removesuffix(" decay"),
            f"{row['updates']:,}",
            str(row["pairs"]),
            _cell(row, "tau_loss", ".3f"),
            _cell(row, "mean_accuracy", ".1f", 100),
            _cell(row, "regret_1", ".1f"),
        ]
        for row in content["differences"]
        if row["training"] == "the defaults"
    ]
    return Table(
        "What dynamic training has more than static training",
        ["size", "decay", "updates", "pairs", "Kendall τ", "accuracy, points", "regret, points"],
        rows,
        f"{content['of']}; by {content['by']}. Kendall τ: how well the loss with inherited weights "
        "ranks subnets. Accuracy: the mean of subnets with inherited weights. Regret: what the "
        "published accuracy of the subnet ranked first lacks of the best one's; less is better. "
        "An interval that holds 0 tells nothing.",
    )


def _cell(row: dict[str, Any], measure: str, form: str, unit: float = 1.0) -> str:
    value, low, high = (unit * end for end in row[measure])
    return f"{Estimate(value, low, high, row['pairs']):+z{form}}"
