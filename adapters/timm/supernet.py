"""What all supernets of timm models share: which subnet is computed, and how one is taken out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NoReturn, Self, TypeVar

import torch
from torch import nn

from nas_dynamic.adapters.timm.images import copy_data_config, example_images
from nas_dynamic.adapters.timm.recipe import Recipe
from nas_dynamic.complexity import LookupTable, count_macs, measure_latency
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Measure", "Supernet"]

Measure = Callable[[nn.Module, torch.Tensor], float]
"""(module, its input) → complexity."""

Model = TypeVar("Model", bound=nn.Module)


class Supernet(nn.Module):
    """What a timm model is beside itself when it computes any subnet of a space.

    A supernet is of a subclass of the model's own class, so that timm's tools treat it as the
    model that it is: optimizers with layer decay, EMA, checkpoints, feature extraction.

    In training mode it computes the subnet that is sampled for the current update, if there is
    one; otherwise, and always in evaluation mode, the one that was activated. A copy, such as an
    EMA model, has an active subnet of its own, and none that is sampled.

    Attributes:
        space: the subnets.
        base: the subnet that is the model which the supernet was made from.
    """

    space: SearchSpace
    base: dict[str, Hashable]
    _architecture: dict[str, Hashable]
    _sampled: Architecture | None = None
    _computed: Architecture | None = None

    @property
    def architecture(self) -> dict[str, Hashable]:
        """The subnet that was activated last, at first `base`."""
        return dict(self._architecture)

    def activate(self, architecture: Architecture) -> None:
        """Make the supernet compute one subnet.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        self._architecture = dict(architecture)
        self._compute(self._architecture)

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

    @property
    def layer_labels(self) -> dict[str, tuple[str, ...]]:
        """Layers in the order in which they compute, and the labels that decide each, if any.

        For `nas_dynamic.evaluation.score_subnets`, which computes once what subnets share.
        """
        raise NotImplementedError

    def describe(self, architecture: Architecture) -> Recipe:
        """Return how timm builds the subnet, as JSON values; see `nas_dynamic.adapters.timm.build`.

        Raises:
            ValueError: it is no architecture of the space; or the supernet was made from models
                that do not tell how they were built.
        """
        self.space.validate(architecture)
        return self._recipe(architecture)

    def extract(self, architecture: Architecture) -> nn.Module:
        """Return the stand-alone subnet, built by timm, with a copy of the weights.

        Its output is the supernet's in every bit. It has the device, dtype, mode and data
        configuration of the supernet.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        return self._filled(self._rebuilt(architecture), architecture)

    def subnet_parameters(self) -> LookupTable:
        """Return architecture → number of parameters of the stand-alone subnet; exact."""
        raise NotImplementedError

    def subnet_macs(self, img_size: int | tuple[int, int] | None = None) -> LookupTable:
        """Return architecture → multiply-accumulates for one image; exact.

        Args:
            img_size: pixels, of a side or (height, width); those that the model is for by
                default.
        """
        return self._table(count_macs, example_images(self, img_size))

    def subnet_latency(self, images: torch.Tensor, *, seconds: float = 0.2) -> LookupTable:
        """Return architecture → milliseconds for a batch of images, from measured layers.

        Layers that are measured apart do not add up to a model exactly: `errors` of the table
        says by how much they fail. `save` keeps the table, since measuring takes long.

        Args:
            images: the batch, on the device and of the dtype to measure with.
            seconds: time to measure each layer for.
        """
        return self._table(functools.partial(measure_latency, seconds=seconds), images)

    def reset_classifier(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: timm would build the subnets with the classifier that the supernet had."""
        raise RuntimeError(
            "give num_classes where you make the supernet, or reset the classifier of the model "
            "before, or of an extracted subnet"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sampled": None}

    def _compute_by_mode(self) -> None:
        sampled = self._sampled if self.training else None
        self._compute(self._architecture if sampled is None else sampled)

    def _compute(self, architecture: Architecture) -> None:
        if architecture != self._computed:
            self._select(architecture)
            self._computed = dict(architecture)

    def _filled(self, subnet: Model, architecture: Architecture) -> Model:
        # Clones keep the memory format, which decides the kernels and so the last bit.
        weights = {name: tensor.clone() for name, tensor in self._weights(architecture).items()}
        # A parameter with several names stays one, although new ones are assigned.
        names: dict[nn.Parameter, str] = {}
        for name, parameter in subnet.named_parameters(remove_duplicate=False):
            if name == names.setdefault(parameter, name):
                weights[name] = nn.Parameter(weights[name], requires_grad=parameter.requires_grad)
            else:
                weights[name] = weights[names[parameter]]
        subnet.load_state_dict(weights, strict=True, assign=True)
        copy_data_config(self, subnet)
        return subnet.train(self.training)

    def _select(self, architecture: Architecture) -> None:
        """Make the layers compute a subnet."""
        raise NotImplementedError

    def _weights(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        """Return the weights of a subnet by their names in the stand-alone model."""
        raise NotImplementedError

    def _recipe(self, architecture: Architecture) -> Recipe:
        """Return how timm builds a subnet."""
        raise NotImplementedError

    def _rebuilt(self, architecture: Architecture) -> nn.Module:
        """Return a stand-alone subnet with any weights."""
        raise NotImplementedError

    def _table(self, measure: Measure, images: torch.Tensor) -> LookupTable:
        """Return the table of a measure of layers that map from these images."""
        raise NotImplementedError
