"""A mixture of all subnets of an elastic model: weighted slices of one set of weights."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nas_dynamic import Architecture
from nas_dynamic.adapters.timm import ElasticVisionTransformer

Probabilities = Mapping[str, torch.Tensor]
"""Label → probabilities of its candidates, in the order of the space."""


class Shared(torch.autograd.Function):
    """weight · shares[cells], of which neither the product nor what it is made of is kept."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, shares: torch.Tensor, cells: torch.Tensor):
        """Return the weight, each entry times the share of its cell."""
        ctx.save_for_backward(weight, shares, cells)
        return weight * shares[cells.int()]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):
        """Return the gradients of the weight and of the shares."""
        weight, shares, cells = ctx.saved_tensors
        of_weight = gradient * shares[cells.int()] if ctx.needs_input_grad[0] else None
        of_shares = None
        if ctx.needs_input_grad[1]:
            flat = (gradient * weight).flatten()
            of_shares = torch.zeros_like(shares).index_add_(0, cells.int().flatten(), flat)
        return of_weight, of_shares, None


class Cells:
    """Which entries of one parameter the candidates use: entries of a cell are used together.

    Attributes:
        labels: the choices that decide what is used of the parameter.
        used: (combinations of their candidates, cells), 1 where it is used.
        counts: entries of each cell.
        of_entry: the cell of each entry, in the shape of the parameter.
    """

    def __init__(self, labels: list[str], used: np.ndarray, shape: torch.Size) -> None:
        self.labels = labels
        columns, of_entry, counts = np.unique(used, axis=1, return_inverse=True, return_counts=True)
        self.used = torch.tensor(columns, dtype=torch.float32)
        self.counts = torch.tensor(counts, dtype=torch.float32)
        self.of_entry = torch.tensor(of_entry.reshape(shape), dtype=torch.uint8)

    def shares(self, probabilities: Probabilities) -> torch.Tensor:
        """Return the probability that an entry of each cell is used."""
        of_combination = torch.ones(1)
        for label in self.labels:
            of_combination = torch.outer(of_combination, probabilities[label]).flatten()
        return of_combination @ self.used


class Mixture(nn.Module):
    """A supernet that computes with the mean of its subnets' weights, padded by zeros.

    There is one set of weights, so a forward pass takes about what the largest subnet takes. If
    all probabilities are 0 or 1 it computes that subnet. A block beyond the depth has weights of
    zero, and hands on its input; norms take their mean and variance over channels as they are
    used.
    """

    def __init__(self, supernet: ElasticVisionTransformer) -> None:
        super().__init__()
        self.supernet, self.space = supernet, supernet.space
        supernet.activate(supernet.base)
        self.cells = cells_of(supernet)
        self.logits = nn.ParameterDict(
            {label: torch.zeros(len(c)) for label, c in self.space.choices.items()}
        )
        self._width: torch.Tensor | None = None  # of a forward pass: how much channels are used
        for module in supernet.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(self._norm)

    def probabilities(self, temperature: float | None = None) -> dict[str, torch.Tensor]:
        """Return probabilities by the logits; with a temperature a Gumbel sample of them."""
        if temperature is None:
            return {label: logits.softmax(0) for label, logits in self.logits.items()}
        sample = functools.partial(nn.functional.gumbel_softmax, tau=temperature)
        return {label: sample(logits) for label, logits in self.logits.items()}

    def forward(self, images: torch.Tensor, probabilities: Probabilities) -> torch.Tensor:
        """Return logits of the classes."""
        own = dict(self.supernet.named_parameters())
        shares = {name: cells.shares(probabilities) for name, cells in self.cells.items()}
        mixed = {n: Shared.apply(own[n], shares[n], c.of_entry) for n, c in self.cells.items()}
        last = "fc_norm.weight" if "fc_norm.weight" in own else "norm.weight"
        self._width = shares[last][self.cells[last].of_entry.int()]
        try:
            return functional_call(self.supernet, mixed, (images,))
        finally:
            self._width = None

    def parameters_of(self, told: Mapping[str, Any]) -> float:
        """Return the expected number of parameters of a mixture, as `told` by `told`."""
        probabilities = {label: torch.tensor([*p.values()]) for label, p in told.items()}
        each = (cells.shares(probabilities) @ cells.counts for cells in self.cells.values())
        return float(sum(each))

    def told(self, probabilities: Probabilities) -> dict[str, Any]:
        """Return what `DynamicTraining` is told in place of one subnet."""
        return {
            label: dict(zip(self.space.choices[label], p.tolist(), strict=True))
            for label, p in probabilities.items()
        }

    def most_probable(self) -> dict[str, Any]:
        """Return the architecture of the greatest logits."""
        return self.space.decode([int(self.logits[label].argmax()) for label in self.space.labels])

    def _norm(self, norm: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if self._width is None:
            return output
        # What it makes on the way is as large as several of its inputs: made again in backward.
        args = (inputs[0], norm.weight, norm.bias, self._width, norm.eps)
        return checkpoint(norm_within, *args, use_reentrant=False)


def norm_within(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, width: torch.Tensor, eps: float
) -> torch.Tensor:
    """Return layer norm with mean and variance weighted by how much a channel is used."""
    width = width / width.sum()
    x = x - (x @ width)[..., None]
    return x * (x.square() @ width + eps).rsqrt()[..., None] * weight + bias


def cells_of(supernet: ElasticVisionTransformer) -> dict[str, Cells]:
    """Find the cells of every parameter, by extracting subnets of a model of numbered entries."""
    numbered = copy.deepcopy(supernet)
    for parameter in numbered.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
    extracted: dict[tuple[Any, ...], dict[str, torch.Tensor]] = {}

    def entries(architecture: Architecture, name: str) -> np.ndarray:
        known = extracted.get(key := tuple(architecture.values()))
        if known is None:
            known = extracted[key] = numbered.extract(architecture).state_dict()
        return known[name].long().flatten().numpy() if name in known else np.array([], int)

    base, choices = supernet.base, supernet.space.choices
    found = {}
    for name, parameter in numbered.named_parameters():
        all_of_it = entries(base, name)
        labels = [
            label
            for label, candidates in choices.items()
            if any(len(entries(base | {label: c}, name)) < len(all_of_it) for c in candidates)
        ]
        used = []
        for combination in itertools.product(*(choices[label] for label in labels)):
            row = np.zeros(parameter.numel(), dtype=bool)
            row[entries(base | dict(zip(labels, combination, strict=True)), name)] = True
            used.append(row)
        found[name] = Cells(labels, np.array(used), parameter.shape)
    return found
