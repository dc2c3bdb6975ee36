"""Command line: train and score arms, print the tables, draw the figure."""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.nb201.arguments import SCORING_BATCH, names, seeds, whole_batches
from benchmarks.nb201.arms import ARMS
from benchmarks.nb201.data import Images, load_images, load_table
from benchmarks.nb201.factors import print_effects
from benchmarks.nb201.idle import print_idle
from benchmarks.nb201.kernels import SIMD, TORCH
from benchmarks.nb201.measured import MEASURED, write_measured
from benchmarks.nb201.rankings import print_rankings, scores_path
from benchmarks.nb201.report import (
    BASELINE,
    DEFAULT_EDGE,
    append_result,
    print_tables,
)
from benchmarks.nb201.scoring import measures, score
from benchmarks.nb201.standalone import print_standalone, train_standalone
from benchmarks.nb201.supernet import EDGES
from benchmarks.nb201.training import IDLE, SAMPLERS, Run, Training

PRESETS = {
    "small": {"channels": 8, "cells": 1, "size": 16, "updates": 20_000},
    "paper": {"channels": 16, "cells": 5, "size": 32, "updates": 98_000},
}
KERNELS = {"torch": TORCH, "simd": SIMD}
SCORED = ("last", "averaged")
"""Weights after the last update, or their moving average."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nb201", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results/nb201.csv"), help="CSV of scores"
    )
    commands = parser.add_subparsers(required=True)

    run = commands.add_parser("run", help="train and score what the results lack")
    run.set_defaults(command=_run)
    run.add_argument("--arms", type=names(ARMS), default=["static", "dynamic"], metavar="A,B")
    run.add_argument("--seeds", type=seeds, default=[0], metavar="0,1,5-9")
    run.add_argument("--idle", type=names(IDLE), default=["coast"], help=", ".join(IDLE))
    run.add_argument("--edge", type=names(EDGES), default=[DEFAULT_EDGE], help="grouping edges")
    run.add_argument(
        "--sampler", choices=SAMPLERS, default="uniform", help="fair: five subnets an update"
    )
    run.add_argument("--preset", choices=PRESETS, default="small")
    run.add_argument("--updates", type=int, help="budget; the preset's by default")
    _add_data(run)
    run.add_argument("--scored", type=names(SCORED), default=["last"], help="which weights")
    run.add_argument("--checkpoint", type=float, default=180, metavar="SECONDS")
    run.add_argument("--device", default="cpu")

    standalone = commands.add_parser(
        "standalone", help="train networks by themselves, and print how supernets rank them"
    )
    standalone.set_defaults(command=_standalone)
    standalone.add_argument("--networks", type=int, default=40, help="of the scored subnets")
    standalone.add_argument("--updates", type=int, default=4000, help="of each network")
    standalone.add_argument("--seed", type=int, default=0)
    standalone.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/nb201_standalone.csv")
    )
    _add_data(standalone)

    table = commands.add_parser("table", help="print means, paired differences and intervals")
    table.set_defaults(command=lambda o: print_tables(o.results, o.seeds, o.against))
    table.add_argument("--seeds", type=seeds, metavar="0,1,5-9", help="all by default")
    measured = commands.add_parser(
        "measured", help=f"write {MEASURED}, the differences that the package carries"
    )
    measured.set_defaults(command=lambda options: write_measured(options.results))
    factors = commands.add_parser(
        "factors", help="print what the decay curve, γ by rank and MS each do"
    )
    factors.set_defaults(command=lambda options: print_effects(options.results))
    idle = commands.add_parser("idle", help="print what coasting does in place of freezing")
    idle.set_defaults(command=lambda options: print_idle(options.results))
    rankings = commands.add_parser(
        "rankings", help="print the bias of the rankings, and what seeds have in common"
    )
    rankings.set_defaults(command=lambda o: print_rankings(o.results, o.runs, o.table, o.against))
    for command in (table, rankings):
        command.add_argument(
            "--against", choices=ARMS, default=BASELINE, metavar="ARM", help="static by default"
        )
    rankings.add_argument("--table", type=Path, default=Path("data/nb201.csv.gz"))
    rankings.add_argument("--runs", type=Path, default=Path("runs/nb201"))
    figure = commands.add_parser(
        "figure", help="draw the paired differences: of all arms, and over the budget"
    )
    figure.set_defaults(command=_draw)
    figure.add_argument("--folder", type=Path, default=Path("runs/nb201"))
    return parser


def _draw(options: argparse.Namespace) -> None:
    from benchmarks.nb201.figures import draw_arms, draw_budgets

    draw_arms(options.results, options.folder / "nb201_differences.png")
    draw_budgets(options.results, options.folder / "nb201_budgets.png")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path("data/cifar10_jpeg.tar.gz"))
    parser.add_argument("--table", type=Path, default=Path("data/nb201.csv.gz"))
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/nb201"), help="checkpoints, scores, caches"
    )
    parser.add_argument("--architectures", type=int, default=1000, help="subnets that are scored")
    parser.add_argument(
        "--images", type=whole_batches, default=5120, help="test images that score them"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--kernels", choices=KERNELS, default="torch", help="simd: faster on a CPU core"
    )


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset] | {"sampler": options.sampler}
    if options.updates:
        preset["updates"] = options.updates
    table = load_table(options.table).stratified(options.architectures)
    train, batches = _images(options, preset["size"], options.device)
    for run in _planned(options, preset):
        done = _scored(options.results, run, len(table.architectures), options.images)
        wanted = [scored for scored in options.scored if scored not in done]
        if not wanted:
            continue
        kernels = KERNELS[options.kernels]
        training = _train(Training(run, train, options.device, kernels), options)
        for scored in wanted:
            supernet = training.supernet if scored == "last" else training.averaged
            scores = score(supernet, table.architectures, batches)
            row = asdict(run) | {"scored": scored} | measures(table, scores)
            row |= {"images": options.images, "seconds": round(training.seconds)}
            np.savez_compressed(scores_path(options.runs, run, row), **asdict(scores))
            append_result(options.results, row)
            print(f"{run.name}: τ {row['tau']:.3f}, {scored} weights", flush=True)


def _images(
    options: argparse.Namespace, size: int, device: str
) -> tuple[Images, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Load training images, and batches of test images."""
    train, test = (
        load_images(options.data, split, size, options.runs) for split in ("train", "test")
    )
    return train, test.balanced(options.images).batches(SCORING_BATCH, device)


def _standalone(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    everything = load_table(options.table)
    chosen = everything.stratified(options.architectures).stratified(options.networks)
    run = Run(
        BASELINE, "freeze", "", options.seed, **PRESETS["small"] | {"updates": options.updates}
    )
    train, batches = _images(options, run.size, "cpu")
    kernels = KERNELS[options.kernels]
    train_standalone(options.output, chosen.architectures, run, train, batches, kernels)
    print_standalone(options.output, run.updates, options.results, options.runs, everything)


def _planned(options: argparse.Namespace, preset: dict[str, Any]) -> list[Run]:
    """Plan every arm of a seed before the next seed. Only separate momenta have edges."""
    runs = []
    for seed, arm, idle in itertools.product(options.seeds, options.arms, options.idle):
        for edge in options.edge if ARMS[arm].separate else [""]:
            runs.append(Run(arm, idle, edge, seed, **preset))
    return runs


def _train(training: Training, options: argparse.Namespace) -> Training:
    checkpoint = options.runs / f"{training.run.name}.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    while not training.done:
        training.advance(seconds=options.checkpoint)
        training.save(checkpoint)
        print(
            f"{training.run.name}: update {training.updates}, loss {training.loss:.3f}", flush=True
        )
    return training


def _scored(results: Path, run: Run, architectures: int, images: int) -> set[str]:
    """Tell which weights of a run have their row already."""
    if not results.exists():
        return set()
    sought = asdict(run) | {"architectures": architectures, "images": images}
    with results.open() as file:
        return {
            row["scored"]
            for row in csv.DictReader(file)
            if all(row[key] == str(value) for key, value in sought.items())
        }


if __name__ == "__main__":
    main()
