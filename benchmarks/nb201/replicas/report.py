"""What the scores of replicas say: paired differences of every measure of the rankings."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from benchmarks.nb201.report import REPLICAS, SETTING, Rows, paired_differences, read_results
from benchmarks.nb201.supernet import EDGES, OPERATIONS, depth
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.analysis.text_table import text_table

__all__ = ["AGAINST", "MEASURES", "print_differences", "print_errors"]

AGAINST = ("static", "poly", "calq")
BY = {"_loss": "by the loss", "": "by the accuracy"}
OF_RANKINGS = {"tau": "τ", "tau_top": "τ of the best tenth"}
OF_RANKINGS |= {f"regret_{count}": f"regret of the first {count}" for count in (1, 10, 100)}
MEASURES = {f"{name}{by}": f"{OF_RANKINGS[name]} {BY[by]}" for by in BY for name in OF_RANKINGS}
MEASURES["mean_accuracy"] = "mean accuracy"


def print_differences(path: Path) -> None:
    """Print a table for each setting of a CSV: what arms have more than static training and poly.

    Intervals are Student's t over the pairs. Where all pairs share the subnets, they say nothing
    about other subnets.
    """
    blocks: dict[tuple[str, ...], Rows] = defaultdict(list)
    for row in read_results(path):
        blocks[tuple(row[key] for key in (*SETTING, *REPLICAS[:2], "idle"))].append(row)
    for rows in blocks.values():
        first = rows[0]
        taken = first["taken"] or first["updates"]
        sequences = {row["subnet_seed"] for row in rows}
        print(
            f"\n{taken} of {first['updates']} updates, C={first['channels']}, N={first['cells']}, "
            f"{first['precision'] or 'float32'}, idle parameters: {first['idle']}; "
            f"{first['architectures']} subnets, {first['images']} images; "
            f"{len(sequences)} sequence(s) of subnets"
        )
        lines = []
        for measure, title in MEASURES.items():
            having = [row for row in rows if row.get(measure)]
            by_arm: dict[str, list[float]] = defaultdict(list)
            for row in having:
                by_arm[row["arm"]].append(float(row[measure]))
            differences = {
                (against, key[-1]): f"{mean_estimate(difference.values):+.3f}"
                for against in AGAINST
                for key, difference in paired_differences(having, measure, against).items()
            }
            for arm, values in by_arm.items():
                cells = [differences.get((against, arm), "") for against in AGAINST]
                lines.append([title, arm, str(len(values)), f"{np.mean(values):.3f}", *cells])
                title = ""
        header = ["", "arm", "n", "mean", *(f"− {against}, 95% t" for against in AGAINST)]
        print(text_table(header, lines, frozenset([0, 1])))


def print_errors(path: Path) -> None:
    """Print how far subnets come out too high by the loss, by depth: in percent of the ranks.

    Args:
        path: scores, as `score` writes them.
    """
    with np.load(path) as saved:
        loss, truth = saved["loss"].mean(-1), saved["truth"]
        operations, replicas = saved["operations"], saved["replicas"]
    arms = np.array([str(name).partition("-freeze")[0].partition("-coast")[0] for name in replicas])
    of = [dict(zip(EDGES, (OPERATIONS[n] for n in row), strict=True)) for row in operations]
    depths = np.array([depth(architecture) for architecture in of])
    errors = (rankdata(-loss, axis=1) - rankdata(truth)) / len(truth) * 100
    header = ["arm", *(f"depth {d}, {(depths == d).sum()} subnets" for d in np.unique(depths))]
    lines = []
    for arm in dict.fromkeys(arms.tolist()):
        mean = errors[arms == arm].mean(0)
        lines.append(
            [
                arm,
                *(f"{mean[depths == d].mean():+.0f}%".replace("-", "−") for d in np.unique(depths)),
            ]
        )
    print(text_table(header, lines, frozenset([0])))
