"""A model that computes any subnet of a space: which one, and how its weights are taken out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import nn

from nas_dynamic.adapters.elastic.space import BlockSpace
from nas_dynamic.adapters.elastic.table import BlockTable
from nas_dynamic.complexity import count_parameters
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Activated", "ActiveSubnet", "ElasticBlocks", "filled"]

Model = TypeVar("Model", bound=nn.Module)


class Activated(nn.Module):
    """What computes one subnet of a space until another one is activated.

    Attributes:
        space: the subnets.
        base: the largest of them.
    """

    space: SearchSpace
    base: dict[str, Hashable]
    _architecture: dict[str, Hashable]

    @property
    def architecture(self) -> dict[str, Hashable]:
        """The subnet that was activated last, at first `base`."""
        return dict(self._architecture)

    def activate(self, architecture: Architecture) -> None:
        """Make it compute one subnet.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        self._architecture = dict(architecture)
        self._activated()

    def _activated(self) -> None:
        """Follow a change of `architecture`."""
        raise NotImplementedError


class ActiveSubnet(Activated):
    """What a framework's model is beside itself when it computes any subnet of a space.

    A supernet is of a subclass of the model's own class, so that the framework's tools treat it as
    the model that it is.

    In training mode it computes the subnet that is sampled for the current update, if there is
    one; otherwise, and always in evaluation mode, the one that was activated. A copy, such as an
    EMA model, has an active subnet of its own, and none that is sampled.

    Attributes:
        base: the subnet that is the model which the supernet was made from.
    """

    _sampled: Architecture | None = None
    _computed: Architecture | None = None

    @property
    def sampled(self) -> Architecture | None:
        """The subnet of the current update of training; None before the first.

        Raises:
            ValueError: when set to what is no architecture of the space.
        """
        return self._sampled

    @sampled.setter
    def sampled(self, architecture: Architecture | None) -> None:
        if architecture is not None:
            self.space.validate(architecture)
        self._sampled = architecture and dict(architecture)
        self._compute_by_mode()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute a subnet, by the mode."""
        # Modes change without a call of `train`, as when an evaluation puts them back.
        self._compute_by_mode()
        return super().__call__(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and with it the subnet, also for calls of parts of the supernet."""
        super().train(mode)
        self._compute_by_mode()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sampled": None}

    def _activated(self) -> None:
        self._compute(self._architecture)

    def _compute_by_mode(self) -> None:
        sampled = self._sampled if self.training else None
        self._compute(self._architecture if sampled is None else sampled)

    def _compute(self, architecture: Architecture) -> None:
        if architecture != self._computed:
            self._select(architecture)
            self._computed = dict(architecture)

    def _select(self, architecture: Architecture) -> None:
        """Make the layers compute a subnet."""
        raise NotImplementedError


class ElasticBlocks(ActiveSubnet):
    """An active subnet that has the first blocks of the supernet, and slices of their layers.

    Attributes:
        block_path: path of the blocks, in the supernet and in every subnet.
    """

    space: BlockSpace[Any]
    block_path: str

    def extract(self, architecture: Architecture) -> nn.Module:
        """Return the stand-alone subnet, with a copy of the weights."""
        raise NotImplementedError

    def subnet_parameters(self) -> BlockTable:
        """Return architecture → number of parameters of the stand-alone subnet; exact.

        What is tied, such as an embedding and a head, counts once.
        """
        return self.subnet_table(count_parameters)

    def subnet_table(self, measure: Callable[[nn.Module], float]) -> BlockTable:
        """Return architecture → any complexity that is a sum over blocks.

        Args:
            measure: the complexity of a stand-alone subnet of one or two blocks, on the meta
                device.
        """
        raise NotImplementedError

    @torch.no_grad()
    def _weights(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        computed = self._computed or self._architecture
        self._compute(architecture)
        try:
            depth = len(self.space.shape(architecture)[1])
            beyond = tuple(f"{self.block_path}.{i}." for i in range(depth, self.space.depth))
            return {
                name: operator.attrgetter(name)(self)
                for name in self.state_dict()
                if not name.startswith(beyond)
            }
        finally:
            self._compute(computed)

    def _freeze(self, subnet: Model) -> Model:
        """Freeze in a subnet what is frozen here."""
        frozen = {
            name
            for name, parameter in self.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        }
        for name, parameter in subnet.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return subnet


def filled(subnet: Model, weights: Mapping[str, torch.Tensor]) -> Model:
    """Give a stand-alone subnet copies of weights, strictly; one that has several names stays one.

    Args:
        subnet: with any weights, also on the meta device.
        weights: name in `subnet.state_dict()` → tensor.
    """
    # Clones keep the memory format, which decides the kernels and so the last bit.
    own = {name: tensor.clone() for name, tensor in weights.items()}
    # A parameter with several names stays one, although new ones are assigned.
    names: dict[nn.Parameter, str] = {}
    for name, parameter in subnet.named_parameters(remove_duplicate=False):
        if name == names.setdefault(parameter, name):
            own[name] = nn.Parameter(own[name], requires_grad=parameter.requires_grad)
        else:
            own[name] = own[names[parameter]]
    subnet.load_state_dict(own, strict=True, assign=True)
    return subnet
