"""What all supernets of timm models share: which subnet is computed, and how one is taken out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from nas_dynamic.adapters.elastic.supernet import ActiveSubnet, filled
from nas_dynamic.adapters.timm.images import copy_data_config, example_images
from nas_dynamic.adapters.timm.recipe import Recipe
from nas_dynamic.complexity import LookupTable, count_macs, measure_latency
from nas_dynamic.space import Architecture

__all__ = ["Measure", "Supernet"]

Measure = Callable[[nn.Module, torch.Tensor], float]
"""(module, its input) → complexity."""

Model = TypeVar("Model", bound=nn.Module)


class Supernet(ActiveSubnet):
    """A timm model that computes any subnet of a space.

    A supernet is of a subclass of the model's own class, so that timm's tools treat it as the
    model that it is: optimizers with layer decay, EMA, checkpoints, feature extraction.
    """

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

    def _filled(self, subnet: Model, architecture: Architecture) -> Model:
        filled(subnet, self._weights(architecture))
        copy_data_config(self, subnet)
        return subnet.train(self.training)

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
