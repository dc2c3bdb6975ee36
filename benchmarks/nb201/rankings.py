"""What the rankings of the arms err in: how much of it is size, and what seeds share."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as PrintedTable
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata, zscore

from benchmarks.nb201.arms import ARMS
from benchmarks.nb201.data import load_table
from benchmarks.nb201.report import BASELINE, DEFAULT_EDGE, interval, read_results
from benchmarks.nb201.scoring import regret_of
from benchmarks.nb201.supernet import EDGES, OPERATIONS, parameters
from benchmarks.nb201.training import Run
from nas_dynamic import Architecture
from nas_dynamic.analysis.paired import Difference
from nas_dynamic.analysis.ranking import complexity_bias, kendall_tau, kendall_tau_within

__all__ = [
    "Setting",
    "baseline_of",
    "cells_of",
    "columns_of",
    "paired_cells",
    "print_rankings",
    "rank_errors",
    "read_rankings",
    "scores_path",
    "tilted",
    "with_deviation",
]


class Setting(NamedTuple):
    """Columns of the results that decide a ranking, but for the seed: those of `SETTING` first."""

    sampler: str
    channels: int
    cells: int
    size: int
    batch: int
    updates: int
    architectures: int
    images: int
    weights: str
    arm: str
    idle: str
    edge: str


ALWAYS = ("sampler", "updates", "weights", "arm", "idle", "edge")
"""What tables print of a setting; the rest where it is not the same everywhere."""


@dataclass(frozen=True)
class _Space:
    """The architectures that a setting ranks, their true accuracies and parameter counts."""

    architectures: list[Architecture]
    truth: np.ndarray
    sizes: np.ndarray

    @property
    def good(self) -> np.ndarray:
        """Whether an architecture is of the better half."""
        return self.truth >= np.median(self.truth)


MEASURES: dict[str, Callable[[np.ndarray, _Space], float]] = {
    "τ to the truth": lambda ranking, space: kendall_tau(ranking, space.truth),
    "τ among equal sizes": lambda ranking, space: kendall_tau_within(
        ranking, space.truth, space.sizes
    ),
    "τ among the better half": lambda ranking, space: kendall_tau(
        ranking[space.good], space.truth[space.good]
    ),
    "τ to the parameters": lambda ranking, space: kendall_tau(ranking, space.sizes),
    "complexity bias": lambda ranking, space: complexity_bias(ranking, space.truth, space.sizes),
    "regret of the first": lambda ranking, space: regret_of(1, ranking, space.truth),
    "regret of the first ten": lambda ranking, space: regret_of(10, ranking, space.truth),
}


def print_rankings(results: Path, runs: Path, table: Path, against: str = BASELINE) -> None:
    """Print three tables of rankings by the mean loss: size, seeds, and edges.

    Args:
        results: the CSV; its rows whose scores are not in `runs` are left out.
        runs: folder with the scores of every architecture.
        table: the CSV of NAS-Bench-201.
        against: the arm that the others are compared with.
    """
    rankings = read_rankings(results, runs)
    everything = load_table(table)
    columns = columns_of(rankings)
    of_size = PrintedTable(*columns, "n", "measure", "mean ± sd", f"− {against}", "95% t")
    of_seeds = PrintedTable(
        *columns, "n", "τ between two seeds", "τ of the mean ranking to the truth"
    )
    of_edges = PrintedTable(*columns, "n", "ranked too high, % of the ranks", "ranked too low")
    for key, by_seed in sorted(rankings.items()):
        truth = everything.stratified(key.architectures)
        sizes = np.array([parameters(a) for a in truth.architectures], dtype=float)
        space = _Space(truth.architectures, truth.accuracy, sizes)
        static = rankings.get(baseline_of(key, against), {})
        paired = [] if key.arm == against else sorted(by_seed.keys() & static.keys())
        setting = [*cells_of(key, columns), str(len(by_seed))]
        for name, measure in MEASURES.items():
            values = {seed: measure(ranking, space) for seed, ranking in by_seed.items()}
            differences = [values[seed] - measure(static[seed], space) for seed in paired]
            row = [name, with_deviation([*values.values()]), *paired_cells(differences)]
            of_size.add_row(*setting, *row)
            setting = [""] * len(setting)
        if paired:
            beyond = []
            for seed in paired:
                tilt = tilted(static[seed], by_seed[seed], space.truth, space.sizes)
                beyond.append(
                    kendall_tau(by_seed[seed], space.truth) - kendall_tau(tilt, space.truth)
                )
            of_size.add_row(*setting, "τ beyond the tilt to size", "", *paired_cells(beyond))
        of_size.add_section()
        rows = _of_all_seeds(list(by_seed.values()), space)
        for printed, row in zip((of_seeds, of_edges), rows, strict=True):
            printed.add_row(*cells_of(key, columns), str(len(by_seed)), *row)
    console = Console(width=150, highlight=False)
    console.print(of_size)
    console.print(of_seeds)
    console.print(of_edges)


def tilted(
    static: np.ndarray, dynamic: np.ndarray, truth: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Tilt a static ranking to large networks until it has a dynamic one's complexity bias.

    Adds a multiple of the ranks of the sizes to the ranks: what the static supernet gives if the
    same weight is put on size without any training.
    """
    ranks, by_size = rankdata(static) / len(static), zscore(rankdata(sizes))
    wanted = complexity_bias(dynamic, truth, sizes)
    best = minimize_scalar(
        lambda weight: abs(complexity_bias(ranks + weight * by_size, truth, sizes) - wanted),
        bounds=(-0.5, 0.5),
        method="bounded",
    )
    return ranks + best.x * by_size


def baseline_of(key: Setting, against: str = BASELINE) -> Setting:
    """Return the setting of the arm that one is compared with, by default static training."""
    return key._replace(arm=against, edge=DEFAULT_EDGE if ARMS[against].separate else "")


def columns_of(settings: Collection[Setting]) -> list[str]:
    """Choose what a table of some settings prints of each."""
    varying = {name: {getattr(s, name) for s in settings} for name in Setting._fields}
    return [name for name, values in varying.items() if name in ALWAYS or len(values) > 1]


def cells_of(key: Setting, columns: Iterable[str]) -> list[str]:
    """Return columns of a setting as text."""
    return [str(getattr(key, name)) for name in columns]


def scores_path(runs: Path, run: Run, row: Mapping[str, object]) -> Path:
    """Return the file with the scores of every architecture that a row of the results is of."""
    scored = f"{row['scored']}-{row['architectures']}x{row['images']}"
    return runs / f"{run.name}-{scored}.npz"


def read_rankings(results: Path, runs: Path) -> dict[Setting, dict[int, np.ndarray]]:
    """Read minus the mean loss of the architectures, by setting and seed.

    Rows of the results whose scores are not in `runs` are left out.
    """
    rankings: dict[Setting, dict[int, np.ndarray]] = defaultdict(dict)
    for row in read_results(results):
        run = Run(
            **{name: row[name] for name in ("arm", "idle", "edge", "sampler")},
            **{
                name: int(row[name])
                for name in ("seed", "updates", "channels", "cells", "size", "batch")
            },
        )
        path = scores_path(runs, run, row)
        if path.is_file():
            key = Setting(
                *(run.sampler, run.channels, run.cells, run.size, run.batch, run.updates),
                *(int(row["architectures"]), int(row["images"])),
                *(row["scored"], run.arm, run.idle, run.edge),
            )
            rankings[key][run.seed] = -np.load(path)["loss"].mean(1)
    return rankings


def _of_all_seeds(of_seeds: list[np.ndarray], space: _Space) -> tuple[list[str], list[str]]:
    """Tell what rankings of the seeds have in common, and what their mean errs in."""
    pairs = [kendall_tau(a, b) for a, b in itertools.combinations(of_seeds, 2)]
    mean_ranks = np.mean([rankdata(ranking) for ranking in of_seeds], axis=0)
    common = [
        f"{np.mean(pairs):.3f}" if pairs else "",
        f"{kendall_tau(mean_ranks, space.truth):.3f}",
    ]
    errors = list(rank_errors(mean_ranks, space.truth, space.architectures).items())
    ends = [
        "\n".join(f"{name} {error:+.0f}" for name, error in end)
        for end in (errors[:3], errors[:-4:-1])
    ]
    return common, ends


def rank_errors(
    ranking: np.ndarray, truth: np.ndarray, architectures: Sequence[Architecture]
) -> dict[str, float]:
    """Return mean errors in rank, in % of the ranks, by edge and operation: of what has it there.

    From those that are ranked most too high down.
    """
    error = 100 * (rankdata(ranking) - rankdata(truth)) / len(truth)
    means = {}
    for edge, operation in itertools.product(EDGES, OPERATIONS):
        having = [architecture[edge] == operation for architecture in architectures]
        if any(having):
            means[f"{edge} {operation}"] = float(error[having].mean())
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def paired_cells(values: list[float]) -> tuple[str, str]:
    """Return mean and number of paired differences, and the interval; empty without any."""
    if not values:
        return "", ""
    difference = Difference(np.array(values))
    return f"{difference.mean:+.3f} ({len(values)})", interval(difference.t_interval())


def with_deviation(values: list[float]) -> str:
    """Return the mean, and the standard deviation of two values or more."""
    deviation = f" ±{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"
