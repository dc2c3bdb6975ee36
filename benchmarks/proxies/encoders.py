"""Head confidence and hidden covariance of BERT-like encoders that are built here.

The 500 encoders of FlexiBERT, from the columns of the table. The published scores are of encoders
of one width, 256 with feed-forward layers of 1,024, whatever widths were trained: the published
parameter counts say so, and the networks here have the same to the unit. So each encoder is built
twice, as it was scored and as it was trained. What is published as head confidence is no attention
weight: it is the sum over the projections of all layers, those without attention too, of the mean
over inputs and units of the greatest output of all positions. Here it is `projections`.

Words are drawn at random, with probabilities of one over their rank, since the text is not at hand.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table as PrintedTable
from torch import Tensor, nn

from benchmarks.nb201.report import append_result, rows_of
from nas_dynamic.analysis.ranking import estimate, spearman_rho
from nas_dynamic.complexity import count_parameters
from nas_dynamic.search.proxies import head_confidence, hidden_covariance

__all__ = ["Encoder", "Layer", "encoders", "encoders_table", "parsed", "projections"]

WORDS, EMBEDDING, POSITIONS = 30_522, 128, 512
SCORED = 256, 1024
"""Width and feed-forward width that the published scores are of."""

INPUTS, TIMES = 4, 128
METRICS = ("head_confidence", "head_confidence_mean", "units", "inputs", "projections")
PUBLISHED = ("head_confidence", "head_confidence_normalized", "head_softmax_confidence")


class Layer(NamedTuple):
    """A layer of the table: operation, heads, feed-forward width, number of its inner layers."""

    operation: str
    heads: int
    feed_forward: int
    inner: int


def parsed(text: str) -> list[Layer]:
    """Read the layers of an encoder, such as `SA-SDP-h4-f512-n3/DSC-5-h2-f1024-n1`."""
    found = []
    for layer in text.split("/"):
        operation, heads, feed_forward, inner = layer.rsplit("-", 3)
        found.append(Layer(operation, int(heads[1:]), int(feed_forward[1:]), int(inner[1:])))
    return found


class Encoder(nn.Module):
    """Embeddings of words and positions, and layers; weights of N(0, .02²), no biases yet.

    Args:
        layers: of the encoder.
        hidden: width.
        feed_forward: width of all feed-forward layers; None: each layer's own.
    """

    def __init__(self, layers: list[Layer], hidden: int, feed_forward: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, EMBEDDING)
        self.positions = nn.Embedding(POSITIONS, EMBEDDING)
        self.kinds = nn.Embedding(2, EMBEDDING)  # of sentences; here all are of the first
        self.norm = nn.LayerNorm(EMBEDDING)
        self.project = nn.Identity() if hidden == EMBEDDING else nn.Linear(EMBEDDING, hidden)
        self.layers = nn.Sequential(
            *(_Layer(layer, hidden, feed_forward or layer.feed_forward) for layer in layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last states, (inputs, times, hidden), of tokens (inputs, times)."""
        embedded = self.words(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.layers(self.project(self.norm(embedded + self.kinds.weight[0])))


class _Layer(nn.Module):
    def __init__(self, layer: Layer, hidden: int, feed_forward: int) -> None:
        super().__init__()
        kind, _, parameter = layer.operation.partition("-")
        self.operation: nn.Module
        if kind == "LT":
            self.operation = _Transform(hidden, layer.heads, parameter)
        else:
            inner = (
                _Convolution(hidden, layer.heads, int(parameter))
                if kind == "DSC"
                else _Attention(hidden, layer.heads, weighted=parameter == "WMA")
            )
            self.operation = _Added(nn.Sequential(inner, nn.Linear(hidden, hidden)), hidden)
        widths = [hidden, *[feed_forward] * layer.inner]
        inside = [
            part
            for width, following in itertools.pairwise(widths)
            for part in (nn.Linear(width, following), nn.GELU())
        ]
        self.feed_forward = _Added(nn.Sequential(*inside, nn.Linear(feed_forward, hidden)), hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.operation(x))


class _Added(nn.Module):
    def __init__(self, inner: nn.Module, hidden: int) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.inner(x))


class _Attention(nn.Module):
    """Scaled dot products of queries, or of weighted ones, and keys; for some of the heads."""

    def __init__(self, hidden: int, heads: int, *, weighted: bool = False, share: int = 1) -> None:
        super().__init__()
        self.heads, width = max(heads // share, 1), max(heads // share, 1) * (hidden // heads)
        self.query, self.key, self.value = (nn.Linear(hidden, width) for _ in range(3))
        self.weight = nn.Linear(width, width, bias=False) if weighted else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.query(x))

    def attend(self, x: Tensor, query: Tensor) -> Tensor:
        projected = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.weight(query), self.key(x), self.value(x))
        )
        attended = nn.functional.scaled_dot_product_attention(*projected)
        return attended.transpose(1, 2).flatten(2)


class _Convolution(_Attention):
    """Attention of half of the heads beside convolutions whose kernels the input decides.

    Source: Jiang et al., "ConvBERT: Improving BERT with Span-based Dynamic Convolution", NeurIPS
    2020.
    """

    def __init__(self, hidden: int, heads: int, size: int) -> None:
        super().__init__(hidden, heads, share=2)
        width = self.query.out_features
        self.depthwise = nn.Conv1d(hidden, hidden, size, padding="same", groups=hidden, bias=False)
        self.pointwise = nn.Conv1d(hidden, width, 1)
        self.kernel = nn.Linear(width, self.heads * size)
        self.out, self.size = nn.Linear(hidden, width), size

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)
        spans = self.pointwise(self.depthwise(x.transpose(1, 2))).transpose(1, 2)
        kernels = self.kernel(spans * query).unflatten(-1, (self.heads, self.size))
        padded = nn.functional.pad(self.out(x), (0, 0, self.size // 2, self.size // 2))
        windows = padded.unfold(1, self.size, 1).unflatten(2, (self.heads, -1))
        weighed = kernels.exp() / kernels.exp().sum(-1, keepdim=True)  # no attention weights
        convolved = (windows * weighed.unsqueeze(3)).sum(-1).flatten(2)
        return torch.cat([self.attend(x, query), convolved], dim=-1)


class _Transform(nn.Module):
    """A Fourier or cosine transform over times and the units of each head, with no remainder."""

    def __init__(self, hidden: int, heads: int, kind: str) -> None:
        super().__init__()
        self.input, self.heads, self.kind = nn.Linear(hidden, hidden), heads, kind

    def forward(self, x: Tensor) -> Tensor:
        by_head = self.input(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.kind == "DFT":
            transformed = torch.fft.fft2(by_head).real
        else:
            times, units = (_cosines(n).to(x) for n in by_head.shape[-2:])
            transformed = times @ by_head @ units.T
        return transformed.transpose(1, 2).flatten(2)


def _cosines(count: int) -> Tensor:
    """Return the matrix of the cosine transform of type II."""
    steps = torch.arange(count, dtype=torch.float64)
    return 2 * torch.cos(torch.pi * steps[:, None] * (2 * steps + 1) / (2 * count))


def projections(model: Encoder, tokens: Tensor) -> float:
    """Return what is published as head confidence; see the module."""
    greatest: list[float] = []
    names = ("query", "key", "value", "weight", "input")
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output: greatest.append(float(output.amax(1).mean()))
        )
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names and isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return sum(greatest)


def encoders(table: Path, rows: Path, *, networks: int | None) -> dict[str, Any]:
    """Compute metrics of encoders, and compare them with published ones and with GLUE.

    Args:
        table: CSV of FlexiBERT.
        rows: CSV that values are appended to; those that it holds are not computed again.
        networks: the first so many of the table; None: all.

    Raises:
        ValueError: a network has not the published number of parameters.
    """
    frame = pd.read_csv(table)[:networks].copy()
    generator = np.random.default_rng(0)
    chances = 1 / np.arange(1, WORDS + 1)
    tokens = torch.from_numpy(generator.choice(WORDS, (INPUTS, TIMES), p=chances / chances.sum()))
    with torch.device("meta"):
        trained = [
            Encoder(parsed(layers), hidden)
            for layers, hidden in zip(frame["layers"], frame["hidden_size"], strict=True)
        ]
    frame["trained params"] = [count_parameters(network) for network in trained]
    frame["heads"] = [_heads(network) for network in trained]
    done = {int(row["id"]) for row in rows_of(rows)}
    for encoder in frame.itertuples():
        if encoder.id not in done:
            start = time.perf_counter()
            row: dict[str, Any] = {"id": encoder.id}
            layers = parsed(encoder.layers)
            for name, widths in (("scored", SCORED), ("trained", (encoder.hidden_size, None))):
                torch.manual_seed(0)
                network = Encoder(layers, *widths)
                row |= {f"{name} {key}": v for key, v in _metrics(network, tokens).items()}
                if name == "scored" and count_parameters(network) != encoder.params:
                    raise ValueError(
                        f"encoder {encoder.id} has {count_parameters(network):,} parameters here, "
                        f"and {encoder.params:,} in {table}"
                    )
            append_result(rows, row | {"seconds": f"{time.perf_counter() - start:.2f}"})
    return _compared(frame.merge(pd.DataFrame(rows_of(rows)).astype(float), on="id"))


def encoders_table(found: dict[str, Any]) -> None:
    """Print ρ of the metrics with published ones and with GLUE, beside the controls."""
    printed = PrintedTable("metric", "built as", "with", "ρ", "95%", "within groups")
    for name, values in found["rho"].items():
        printed.add_row(*name.split(", "), *values)
    console = Console(width=140, highlight=False)
    console.print(printed)
    console.print(
        f"{found['n']} encoders, {found['seconds']:.1f} s each; within encoders of one depth and "
        "trained width: the mean of the groups."
    )


def _metrics(network: Encoder, tokens: Tensor) -> dict[str, float]:
    batch = tokens, torch.zeros_like(tokens)
    last = f"layers.{len(network.layers) - 1}"
    values = {}
    if heads := _heads(network):
        values["head_confidence"] = head_confidence(network, batch)
        values["head_confidence_mean"] = values["head_confidence"] / heads
    else:
        values["head_confidence"] = values["head_confidence_mean"] = 0.0
    for of in ("units", "inputs"):
        values[of] = hidden_covariance(network, batch, layer=last, of=of)
    return values | {"projections": projections(network, tokens)}


def _heads(network: Encoder) -> int:
    return sum(module.heads for module in network.modules() if isinstance(module, _Attention))


def _compared(frame: pd.DataFrame) -> dict[str, Any]:
    groups = [group for _, group in frame.groupby(["n_layers", "hidden_size"])]
    found: dict[str, Any] = {"n": len(frame), "seconds": float(frame["seconds"].median())}
    rho = found["rho"] = {}

    def compare(name: str, column: str, other: str) -> None:
        all_of = estimate(spearman_rho, frame[column], frame[other], resamples=500)
        inside = [(spearman_rho(g[column], g[other]), len(g)) for g in groups]
        mean = np.average([r for r, _ in inside], weights=[n for _, n in inside])
        rho[name] = [f"{all_of.value:.3f}", f"{all_of.low:.2f} to {all_of.high:.2f}", f"{mean:.2f}"]

    for metric in METRICS:
        compare(f"{metric}, scored, published", f"scored {metric}", "head_confidence")
        for built in ("scored", "trained"):
            compare(f"{metric}, {built}, GLUE", f"{built} {metric}", "glue")
    compare("head_confidence, scored, heads", "scored head_confidence", "heads")
    compare("heads, trained, GLUE", "heads", "glue")
    compare("params, trained, GLUE", "trained params", "glue")
    for control in (*PUBLISHED, "params", "n_layers", "hidden_size"):
        compare(f"{control}, table, GLUE", control, "glue")
    return found
