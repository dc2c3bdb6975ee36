"""A causal test of one's own supernet: short trainings that differ in one thing each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from nas_dynamic.analysis.gradient_similarity import (
    LabelSimilarity,
    gradient_function,
    gradient_similarity,
)
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.ranking import (
    Estimate,
    complexity_convergence,
    kendall_tau,
    rank_by_loss,
)
from nas_dynamic.evaluation.inference import autocast
from nas_dynamic.experiment.compare import begin_arm, static_arm
from nas_dynamic.experiment.config import Config, parse
from nas_dynamic.experiment.data import batch_loader
from nas_dynamic.experiment.doctor.advice import Advice, Signs, advise
from nas_dynamic.experiment.engine import Engine
from nas_dynamic.experiment.load import load_run
from nas_dynamic.experiment.run import checked_data, differences_to_start, run_seeds
from nas_dynamic.experiment.standalone import standalone_scores
from nas_dynamic.report.records import SeedResult, Subnet
from nas_dynamic.report.run_folder import Run, read_run
from nas_dynamic.report.tables import Table
from nas_dynamic.space import Architecture, key
from nas_dynamic.storage.journal import RunError, check_writable, write_json

__all__ = ["examine_supernet", "pilot_arms", "signs_table"]

ALONE = 2
"""Trainings of each subnet alone: their agreement bounds what a ranking can reach."""


def pilot_arms(config: Config, updates: int, seeds: Sequence[int]) -> dict[str, Config]:
    """Return three short trainings, each of which differs in one thing from the one before it.

    All decay the lr along one curve: without CaLR for all subnets alike; with it, as fast as a
    subnet is small; then with a momentum for each group as well. Idle parameters do the same in
    all, as the configuration says. A scheduler of it is left out, since it is made for another
    number of updates.

    Args:
        config: whose space, data, optimizer and options they have.
        updates: of each.
        seeds: of each.
    """
    content = config.model_dump()
    content |= {"epochs": None, "steps": updates, "scheduler": None, "seeds": list(seeds)}
    dynamic = content["dynamic"] | {"calr": True, "momentum": False}
    dynamic["warmup_steps"] = min(dynamic["warmup_steps"], updates // 10)
    if dynamic["curve"] == "scheduler":
        dynamic["curve"] = "polynomial"
    arms = {
        "CaLR": parse(content | {"dynamic": dynamic}),
        "CaLR + MS": parse(content | {"dynamic": dynamic | {"momentum": True}}),
    }
    static = static_arm(arms["CaLR"], str(dynamic["curve"])).model_dump()
    static["dynamic"] |= {"idle": dynamic["idle"]}  # of a comparison it freezes
    arms = {"static": parse(static), **arms}
    return {
        name: arm.model_copy(update={"name": f"{config.name}-{folder_name(name)}"})
        for name, arm in arms.items()
    }


def folder_name(arm: str) -> str:
    """Return the folder of an arm."""
    return arm.lower().replace(" + ", "-")


def examine_supernet(
    config: Config,
    folder: Path,
    engine: Engine,
    *,
    updates: int,
    seeds: Sequence[int],
    subnets: int,
) -> tuple[Signs, Advice]:
    """Train a supernet shortly in three ways, and some of its subnets alone, and say what to do.

    What is in the folder already is kept, so that a stopped examination goes on, also with more
    seeds. Signs and advice go to its doctor.json.

    Args:
        config: of the supernet.
        folder: of the examination.
        engine: trains the supernets and the subnets.
        updates: of each training.
        seeds: of the supernets, two or more.
        subnets: number that is trained alone, twice each: evenly by size from those that are
            scored.

    Raises:
        RunError: there is one seed only; the folder was started with another configuration.
        ConfigError: an arm cannot be trained; nothing is written.
    """
    if len(seeds) < 2:
        raise RunError("one seed has no interval, so nothing can be told: give --seed two or more")
    arms = pilot_arms(config, updates, seeds)
    check_writable(folder)
    data = checked_data(*arms.values())
    folders = {name: folder / folder_name(name) for name in arms}
    for name, arm in arms.items():
        if differing := differences_to_start(folders[name], arm, but=["seeds"]):
            raise RunError(differing)
    for name, arm in arms.items():
        begin_arm(folders[name], arm)
    run_seeds({folders[name]: arm for name, arm in arms.items()}, data, engine)
    runs = {name: read_run(folders[name]).of_seeds(seeds) for name in arms}
    chosen = _by_size(runs["static"].subnets, subnets)
    architectures = [subnet.architecture for subnet in chosen]
    epochs = -(-updates // len(batch_loader(data.train, config.batch_size, shuffle=True)))
    alone = [
        standalone_scores(
            arms["static"],
            data,
            architectures,
            epochs,
            folder,
            engine,
            on="validation",
            seed=seed,
            updates=updates,
        )
        for seed in range(ALONE)
    ]
    losses = np.array([[score.loss for score in training] for training in alone])
    label = runs["CaLR + MS"].seeds[0].group_by or ""
    similar = [_similarity(folders["static"], seed, label) for seed in seeds if label]
    signs = _signs(runs, chosen, losses, label, [found for found in similar if found is not None])
    advice = advise(signs)
    content: dict[str, Any] = asdict(signs)
    for name in ("calr", "momentum"):
        content[name] = getattr(signs, name).values.tolist()
    write_json(
        folder / "doctor.json",
        {"updates": updates, "seeds": list(seeds), "subnets": len(chosen)}
        | content
        | {"advice": asdict(advice)},
    )
    return signs, advice


def signs_table(signs: Signs) -> Table:
    """Return what was seen, each with what it is a sign of."""
    rows = [
        ["large subnets lag: ρ of size and lag", f"{signs.lag:.2f}"],
        ["CaLR takes away of it", f"{signs.lessened:.2f}"],
        ["Kendall τ with CaLR, less without", f"{mean_estimate(signs.calr.values):+.3f}"],
        [
            "with momentum separation as well, less without",
            f"{mean_estimate(signs.momentum.values):+.3f}",
        ],
        [f"cosine of gradients within groups ({signs.label})", f"{signs.within:.3f}"],
        ["across groups", f"{signs.across:.3f}"],
        ["Kendall τ between supernets of two seeds", f"{signs.agreement:.3f}"],
        ["between two trainings of subnets alone, the ceiling", f"{signs.ceiling:.3f}"],
    ]
    note = (
        f"Means over {signs.lag.count} seeds with their 95% intervals (Student's t). A subnet lags "
        "by what its loss with inherited weights is above that of the same subnet trained alone "
        "for as many updates; τ is that of the losses of both. All decay the lr along one curve, "
        "so that the curve explains no difference."
    )
    return Table("Signs", ["sign", "found"], rows, note)


def _by_size(subnets: Sequence[Subnet], count: int) -> list[Subnet]:
    """Return some subnets, evenly by size."""
    ordered = sorted(subnets, key=lambda subnet: subnet.parameters)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _signs(
    runs: dict[str, Run],
    chosen: Sequence[Subnet],
    alone: np.ndarray,
    label: str,
    similar: Sequence[LabelSimilarity],
) -> Signs:
    """Return the signs; `alone` has the stand-alone losses, shape (trainings, subnets)."""
    sizes = [subnet.parameters for subnet in chosen]
    own = alone.mean(0)
    truth = rank_by_loss(own)
    lags, taus = {}, {}
    for name, run in runs.items():
        losses = [_losses(seed, chosen) for seed in run.seeds]
        lags[name] = np.array([complexity_convergence(sizes, loss, own) for loss in losses])
        taus[name] = np.array([kendall_tau(rank_by_loss(loss), truth) for loss in losses])
    rankings = [
        rank_by_loss(subnet.loss for subnet in seed.subnets) for seed in runs["static"].seeds
    ]
    agreements = [kendall_tau(a, b) for a, b in itertools.combinations(rankings, 2)]
    return Signs(
        lag=mean_estimate(lags["static"]),
        lessened=mean_estimate(lags["static"] - lags["CaLR"]),
        label=label,
        within=_mean([found.within for found in similar]),
        across=_mean([found.across for found in similar]),
        calr=Difference(taus["CaLR"] - taus["static"]),
        momentum=Difference(taus["CaLR + MS"] - taus["CaLR"]),
        agreement=float(np.mean(agreements)),
        ceiling=kendall_tau(rank_by_loss(alone[0]), rank_by_loss(alone[1])),
    )


def _mean(values: Sequence[float]) -> Estimate:
    return mean_estimate(values) if values else Estimate(np.nan, np.nan, np.nan, 0)


def _losses(seed: SeedResult, chosen: Sequence[Subnet]) -> list[float]:
    """Return the losses of some subnets with inherited weights."""
    known = {key(subnet.architecture): subnet.loss for subnet in seed.subnets}
    return [known[key(subnet.architecture)] for subnet in chosen]


def _similarity(folder: Path, seed: int, label: str) -> LabelSimilarity | None:
    """Return how alike gradients are in a trained supernet, by a label; None if it is not one."""
    run = load_run(folder, seed)
    device = run.config.torch_device
    supernet = run.supernet.to(device)
    supernet.model.train()  # of a copy: its statistics are not used again

    def loss(architecture: Architecture, batch: Any) -> torch.Tensor:
        supernet.activate(architecture)
        with autocast(device, run.config.precision):
            logits = supernet.model(batch[0].to(device))
        return cross_entropy(logits.float(), batch[1].to(device))

    gradient = gradient_function(supernet.model, loss)
    rows = gradient_similarity(supernet.space, gradient, run.score.calibration[:2], subnets=24)
    return next((row for row in rows if row.label == label), None)
