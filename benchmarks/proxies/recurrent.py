"""Hidden covariance of recurrent networks that are built here, from the recipes of NAS-Bench-NLP.

Of each recipe the first of its three layers, with the benchmark's sizes and initial weights; words
are drawn at random, with probabilities of one over their rank, since the text is not at hand. The
published score was computed on Penn Treebank.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.nb201.report import append_result, rows_of
from nas_dynamic.analysis.ranking import estimate, spearman_rho
from nas_dynamic.search.proxies import hidden_covariance

__all__ = ["RecipeNetwork", "recurrent", "recurrent_table"]

WORDS, EMBEDDING, HIDDEN = 10_000, 400, 600
INPUTS, TIMES = 20, 70
ACTIVATIONS = {"tanh": torch.tanh, "sigm": torch.sigmoid, "leaky_relu": nn.functional.leaky_relu}


class Cell(nn.Module):
    """One step of a recipe: node → operation and inputs; `x` is the input, `h_prev_k` a state."""

    def __init__(self, recipe: Mapping[str, Any], inputs: int, hidden: int) -> None:
        super().__init__()
        self.recipe, self.order = recipe, _ordered(recipe)
        self.states = sum(node.startswith("h_new_") and node[6:].isdigit() for node in recipe)
        self.linear = nn.ModuleDict(
            {
                node: nn.ModuleList(
                    nn.Linear(inputs if source == "x" else hidden, hidden, bias=number == 0)
                    for number, source in enumerate(spec["input"])
                )
                for node, spec in recipe.items()
                if spec["op"] == "linear"
            }
        )
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the next states, each (inputs, hidden); the first is the output."""
        values = {"x": x} | {f"h_prev_{k}": state for k, state in enumerate(states)}
        for node in self.order:
            spec = self.recipe[node]
            of = [values[source] for source in spec["input"]]
            kind, _, name = spec["op"].partition("_")
            if kind == "linear":
                layers = zip(self.linear[node], of, strict=True)
                values[node] = torch.stack([layer(value) for layer, value in layers]).sum(0)
            elif kind == "blend":
                values[node] = of[0] * of[1] + (1 - of[0]) * of[2]
            elif kind == "activation":
                values[node] = ACTIVATIONS[name](of[0])
            else:
                stacked = torch.stack(of)
                values[node] = stacked.sum(0) if name == "sum" else stacked.prod(0)
        return tuple(values[f"h_new_{k}"] for k in range(self.states))


class RecipeNetwork(nn.Module):
    """An embedding and one recurrent layer."""

    def __init__(self, recipe: Mapping[str, Any], words: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, embedding)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.cell, self.hidden = Cell(recipe, embedding, hidden), hidden

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last state, (inputs, hidden), of tokens (inputs, times)."""
        embedded = self.embedding(tokens)
        states = (embedded.new_zeros(len(tokens), self.hidden),) * self.cell.states
        for x in embedded.unbind(1):
            states = self.cell(x, states)
        return states[0]


def recurrent(
    recipes: Path, published: Path, rows: Path, *, networks: int | None
) -> dict[str, Any]:
    """Compute the metric of recipes, and compare it with the published one and with the loss.

    Args:
        recipes: CSV of NAS-Bench-NLP on WikiText-2, with recipes.
        published: CSV of recurrent networks with scores.
        rows: CSV that values are appended to; those that it holds are not computed again.
        networks: so many of the recipes that both have, drawn at random; None: all.
    """
    table = pd.read_csv(recipes).drop_duplicates("recipe_id").dropna(subset=["test_loss_50"])
    table = table.merge(pd.read_csv(published), on="recipe_id", suffixes=("", "_ptb"))
    table = table.sample(frac=1, random_state=0)[:networks]
    generator = np.random.default_rng(0)
    chances = 1 / np.arange(1, WORDS + 1)
    drawn = generator.choice(WORDS, (INPUTS, TIMES), p=chances / chances.sum())
    batch = torch.from_numpy(drawn), torch.zeros(INPUTS, dtype=torch.long)
    done = {int(row["recipe_id"]) for row in rows_of(rows)}
    for number, text in zip(table["recipe_id"], table["recipe"], strict=True):
        if number not in done:
            start = time.perf_counter()
            torch.manual_seed(number)
            network = RecipeNetwork(json.loads(text), WORDS, EMBEDDING, HIDDEN)
            row: dict[str, Any] = {"recipe_id": number}
            for of in ("units", "inputs"):
                row[of] = hidden_covariance(network, batch, layer="cell", of=of)
            append_result(rows, row | {"seconds": f"{time.perf_counter() - start:.2f}"})
    ours = pd.DataFrame(rows_of(rows)).astype(float)
    table = table.merge(ours, on="recipe_id")
    found: dict[str, Any] = {"n": len(table), "seconds": float(table["seconds"].median())}
    theirs, loss = table["layer_1_hidden_covariance"], table["test_loss_50"]
    for name in ("units", "inputs"):
        found[f"{name}, published"] = _rho(table[name], theirs)
        found[f"{name}, loss"] = _rho(table[name], loss)
    found["published, loss"] = _rho(theirs, loss)
    found["params, loss"] = _rho(table["params"], loss)
    return found


def recurrent_table(found: dict[str, Any]) -> None:
    """Print ρ between ours, the published metric, parameters and the loss."""
    console = Console(width=120, highlight=False)
    console.print(f"{found['n']} recurrent networks, {found['seconds']:.1f} s each; ρ [95%] of")
    for name, value in found.items():
        if isinstance(value, str):
            console.print(f"  {name}: {value}")


def _rho(first: pd.Series, second: pd.Series) -> str:
    return f"{estimate(spearman_rho, first, second):.2f}"


def _ordered(recipe: Mapping[str, Any]) -> list[str]:
    """Return the nodes so that each comes after its inputs."""
    order: list[str] = []

    def visit(node: str) -> None:
        if node in recipe and node not in order:
            for source in recipe[node]["input"]:
                visit(source)
            order.append(node)

    for node in recipe:
        visit(node)
    return order
