"""Training-free metrics of recurrent networks and transformers, by their published scores.

ρ with the test loss (NAS-Bench-NLP, Penn Treebank; less is better) and with GLUE (FlexiBERT), from
the tables alone, beside the controls: parameters, and depth. Within networks of one depth and width
a metric tells what those two do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table as PrintedTable

from nas_dynamic.analysis.ranking import estimate, spearman_rho

__all__ = ["sequences", "sequences_table"]

RNN = ("layer_1_hidden_covariance", "layer_2_hidden_covariance", "layer_3_hidden_covariance")
BERT = (
    *("head_confidence", "head_confidence_normalized"),
    *("head_importance", "head_importance_normalized"),
)


def sequences(rnn: Path, bert: Path) -> dict[str, Any]:
    """Compare published scores with what training came to.

    Args:
        rnn: CSV of recurrent networks.
        bert: CSV of FlexiBERT.
    """
    recurrent, encoders = pd.read_csv(rnn), pd.read_csv(bert)
    found: dict[str, Any] = {"RNN, loss": {}, "BERT, GLUE": {}, "BERT, GLUE, within": {}}
    for name in (*RNN, "jacobian_covariance", "params"):
        found["RNN, loss"][name] = _rho(recurrent[name], recurrent["loss"])
    for name in (*BERT, "params", "n_layers", "hidden_size"):
        found["BERT, GLUE"][name] = _rho(encoders[name], encoders["glue"])
    for name in (*BERT, "params"):
        groups = encoders.groupby(["n_layers", "hidden_size"])
        rhos = [(spearman_rho(g[name], g["glue"]), len(g)) for _, g in groups]
        mean = float(np.average([rho for rho, _ in rhos], weights=[n for _, n in rhos]))
        found["BERT, GLUE, within"][name] = {
            "rho": mean,
            "range": [min(r for r, _ in rhos), max(r for r, _ in rhos)],
            "n": sum(n for _, n in rhos),
        }
    return found


def sequences_table(found: dict[str, Any]) -> None:
    """Print ρ of each metric and control."""
    printed = PrintedTable("table", "metric", "n", "ρ", "95%, or range of groups")
    for table, metrics in found.items():
        for metric, values in metrics.items():
            low, high = values["range"]
            cells = str(values["n"]), f"{values['rho']:.2f}", f"{low:.2f} to {high:.2f}"
            printed.add_row(table, metric, *cells)
    Console(width=120, highlight=False).print(printed)


def _rho(scores: pd.Series, results: pd.Series) -> dict[str, Any]:
    usable = np.isfinite(scores) & np.isfinite(results)
    found = estimate(spearman_rho, scores[usable], results[usable], resamples=500)
    return {"rho": found.value, "range": [found.low, found.high], "n": int(usable.sum())}
