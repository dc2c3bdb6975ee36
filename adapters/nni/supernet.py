"""A trained supernet of NNI with the methods that supernets have here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nas_dynamic.adapters.nni.complexity import subnet_macs, subnet_parameters
from nas_dynamic.adapters.nni.extract import extract
from nas_dynamic.adapters.nni.space import activate, search_space
from nas_dynamic.complexity import Complexity
from nas_dynamic.space import Architecture

__all__ = ["Supernet"]


class Supernet(nn.Module):
    """A supernet of NNI, as `nas_dynamic.search.search_supernet` takes it.

    Args:
        model: a model space that a one-shot strategy has mutated, `strategy.supernet`. It is kept,
            not copied.

    Attributes:
        model: the same.
        space: its subnets.
        sampled: None: NNI's strategies keep that to themselves.

    Raises:
        ValueError: a call of `extract` or `activate` with what is no architecture of the space.

    Example:
        >>> from nni.nas.hub.pytorch import NasBench201
        >>> from nni.nas.strategy import RandomOneShot
        >>> supernet = Supernet(RandomOneShot().mutate_model(NasBench201(4, 1, 10)))
        >>> supernet.subnet_parameters()(dict.fromkeys(supernet.space.labels, "conv_1x1"))
        7246
    """

    def __init__(self, model: ModelSpace) -> None:
        super().__init__()
        self.space = search_space(model)
        self.sampled: Architecture | None = None
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the active subnet."""
        return self.model(x)  # type: ignore[no-any-return]

    def activate(self, architecture: Architecture) -> None:
        """Make the supernet compute one subnet, until the next activation or sampling."""
        self.space.validate(architecture)
        activate(self.model, architecture)

    def extract(self, architecture: Architecture) -> nn.Module:
        """Return a subnet as a model of its own: see `nas_dynamic.adapters.nni.extract`."""
        return extract(self.model, architecture)

    def subnet_parameters(self) -> Callable[[Architecture], int]:
        """Return architecture → number of parameters of the stand-alone subnet."""
        return subnet_parameters(self.model)

    def subnet_macs(self, *inputs: torch.Tensor) -> Complexity:
        """Return architecture → multiply-accumulates for one image of this shape."""
        return subnet_macs(self.model, *inputs)
