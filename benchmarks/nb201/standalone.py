"""Stand-alone networks of the supernet's size: the ranking that a supernet can hope for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as PrintedTable

from benchmarks.nb201.data import Images, Table
from benchmarks.nb201.kernels import Kernels
from benchmarks.nb201.rankings import (
    baseline_of,
    cells_of,
    columns_of,
    paired_cells,
    read_rankings,
    with_deviation,
)
from benchmarks.nb201.report import BASELINE, append_result, rows_of
from benchmarks.nb201.scoring import score
from benchmarks.nb201.training import Run, Training
from nas_dynamic import Architecture
from nas_dynamic.analysis.ranking import kendall_tau

__all__ = ["print_standalone", "train_standalone"]


def train_standalone(
    results: Path,
    architectures: Iterable[Architecture],
    run: Run,
    images: Images,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    kernels: Kernels,
) -> None:
    """Train and score each architecture by itself, and append a row; those in the file are left.

    Args:
        results: a CSV.
        architectures: what to train.
        run: size, budget and seed of each training.
        images: the training set.
        batches: of test images.
        kernels: how layers are computed.
    """
    done = {
        (row["architecture"], int(row["seed"]), int(row["updates"])) for row in rows_of(results)
    }
    for number, architecture in enumerate(architectures, 1):
        if (_name(architecture), run.seed, run.updates) in done:
            continue
        training = Training(run, images, kernels=kernels, sampler=_Always(architecture))
        training.advance()
        scores = score(training.supernet, [architecture], batches)
        loss, accuracy = float(scores.loss.mean()), float(scores.accuracy.mean())
        row = {"architecture": _name(architecture), "seed": run.seed, "updates": run.updates}
        append_result(results, row | {"loss": f"{loss:.5f}", "accuracy": f"{accuracy:.5f}"})
        print(f"{number}: loss {loss:.3f}, accuracy {accuracy:.3f}", flush=True)


def print_standalone(
    standalone: Path, updates: int, results: Path, runs: Path, everything: Table
) -> None:
    """Print τ, by the mean loss, of supernets to stand-alone networks and to the published ones.

    Args:
        standalone: CSV of the stand-alone networks.
        updates: of each of them; rows of other budgets are left out.
        results: CSV of the supernets; rows whose scores are not in `runs` are left out.
        runs: folder with the supernets' scores.
        everything: NAS-Bench-201.
    """
    losses: dict[str, list[float]] = defaultdict(list)
    for row in rows_of(standalone):
        if int(row["updates"]) == updates:
            losses[row["architecture"]].append(float(row["loss"]))
    if not losses:
        raise FileNotFoundError(f"{standalone}: no stand-alone network was trained yet")
    rankings = read_rankings(results, runs)
    columns = columns_of(rankings)
    printed = PrintedTable(*columns, "n", "τ to", "mean ± sd", f"− {BASELINE}", "95% t")
    for key, by_seed in sorted(rankings.items()):
        table = everything.stratified(key.architectures)
        chosen = [i for i, a in enumerate(table.architectures) if _name(a) in losses]
        of_standalone = [-np.mean(losses[_name(table.architectures[i])]) for i in chosen]
        truths = {"stand-alone": of_standalone, "published": table.accuracy[chosen]}
        static = rankings.get(baseline_of(key), {})
        setting = [*cells_of(key, columns), str(len(by_seed))]
        for name, truth in truths.items():
            taus = {seed: kendall_tau(ranking[chosen], truth) for seed, ranking in by_seed.items()}
            paired = [] if key.arm == BASELINE else sorted(taus.keys() & static.keys())
            differences = [taus[seed] - kendall_tau(static[seed][chosen], truth) for seed in paired]
            cells = [with_deviation([*taus.values()]), *paired_cells(differences)]
            printed.add_row(*setting, name, *cells)
            setting = [""] * len(setting)
    console = Console(width=150, highlight=False)
    console.print(printed)
    of_table = [i for i, a in enumerate(everything.architectures) if _name(a) in losses]
    values = [-np.mean(losses[_name(everything.architectures[i])]) for i in of_table]
    console.print(
        f"{len(of_table)} networks; τ of stand-alone to published accuracy: "
        f"{kendall_tau(np.array(values), everything.accuracy[of_table]):.3f}"
    )


def _name(architecture: Architecture) -> str:
    return "|".join(map(str, architecture.values()))


class _Always:
    """A sampler of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def sample(self) -> Architecture:
        return self.architecture
