"""Computation that subnets share: layers with the same choices up to and including them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nas_dynamic.space import Architecture

__all__ = ["PrefixCache"]

MEMORY = 2 * 2**30
"""Bytes of outputs that are kept at most."""


@dataclass(eq=False)
class _Layer:
    """A layer, and what it computed for the beginning that subnets share."""

    module: nn.Module
    labels: tuple[str, ...]
    outputs: dict[tuple[str, int, int], torch.Tensor] = field(default_factory=dict)
    """(phase, batch, call of the layer in that batch) → output."""
    reserved: dict[str, int] = field(default_factory=dict)
    """Phase → bytes of its outputs; 0 where they are not kept."""
    buffers: list[torch.Tensor] = field(default_factory=list)
    """Values after a calibration."""
    calls: int = 0

    def clear(self) -> None:
        self.outputs, self.reserved, self.buffers = {}, {}, []


class PrefixCache:
    """Computes a layer once for consecutive subnets that agree on all choices up to it.

    Forward passes inside of its context are in evaluation mode, over the same batches in the same
    order for every subnet. What a layer put out for a subnet is kept, as a copy, only if the next
    subnet can use it; what does not fit into `MEMORY` is computed again.

    Args:
        model: the supernet.
        layers: path of a module → labels that decide it, in the order in which they compute. The
            input of a layer must depend on no other labels than its own and those of the layers
            before it.

    Raises:
        ValueError: the model has no module of that path.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Collection[str]]) -> None:
        modules = dict(model.named_modules())
        missing = [path for path in layers if path not in modules]
        if missing:
            raise ValueError(f"the supernet has no module {', '.join(map(repr, missing))}")
        self._model = model
        self._layers = [_Layer(modules[path], tuple(labels)) for path, labels in layers.items()]
        self._architecture: Architecture | None = None
        self._shared = 0  # number of the first layers that the next subnet can use
        self._phase, self._images, self._batch = "", 0, 0

    def order(self, architectures: Sequence[Architecture]) -> list[Architecture]:
        """Return the architectures, those that share the most next to each other."""
        labels = dict.fromkeys(label for layer in self._layers for label in layer.labels)
        ranks: dict[str, dict[Any, int]] = {label: {} for label in labels}

        def ranked(architecture: Architecture) -> list[int]:
            return [rank.setdefault(architecture[k], len(rank)) for k, rank in ranks.items()]

        return sorted(architectures, key=ranked)

    @contextlib.contextmanager
    def subnet(self, architecture: Architecture, following: Architecture | None) -> Iterator[None]:
        """Compute a subnet, to be followed by another one, or none."""
        for layer in self._layers[self._agreement(self._architecture, architecture) :]:
            layer.clear()
        self._architecture = architecture
        self._shared = self._agreement(architecture, following)
        handle = self._model.register_forward_pre_hook(self._begin_batch)
        own = [vars(layer.module).get("forward") for layer in self._layers]
        for number, layer in enumerate(self._layers):
            layer.module.forward = functools.partial(self._compute, number, layer.module.forward)
        try:
            yield
        finally:
            handle.remove()
            for layer, forward in zip(self._layers, own, strict=True):
                del layer.module.forward
                if forward is not None:
                    layer.module.forward = forward

    def phase(self, name: str, images: int) -> None:
        """Begin forward passes over all batches of one kind, one each, so many images in all."""
        self._phase, self._images, self._batch = name, images, 0

    @contextlib.contextmanager
    def calibration(self, images: int) -> Iterator[None]:
        """Make a phase that sets buffers: also those of the layers that need not compute."""
        for layer in self._layers:
            if layer.buffers:
                for buffer, value in zip(layer.module.buffers(), layer.buffers, strict=True):
                    buffer.copy_(value)
        self.phase("calibration", images)
        yield
        for layer in self._layers[: self._shared]:
            layer.buffers = [buffer.clone() for buffer in layer.module.buffers()]

    def _agreement(self, one: Architecture | None, other: Architecture | None) -> int:
        """Return how many of the first layers are the same in two subnets."""
        if one is None or other is None:
            return 0
        for number, layer in enumerate(self._layers):
            if any(one[label] != other[label] for label in layer.labels):
                return number
        return len(self._layers)

    def _begin_batch(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._batch += 1
        for layer in self._layers:
            layer.calls = 0

    def _compute(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layer = self._layers[number]
        layer.calls += 1
        key = self._phase, self._batch, layer.calls
        if key in layer.outputs:
            return layer.outputs[key].clone()  # what follows may work in place
        output = forward(*args, **kwargs)
        if number < self._shared and self._fits(layer, output):
            layer.outputs[key] = output.clone()
        return output

    def _fits(self, layer: _Layer, output: Any) -> bool:
        """Tell whether the outputs of a layer are kept: of all batches of the phase, or of none."""
        if self._phase not in layer.reserved:
            size = 0
            if torch.is_tensor(output):
                size = output.element_size() * output[0].numel() * self._images
            free = MEMORY - sum(sum(other.reserved.values()) for other in self._layers)
            layer.reserved[self._phase] = size if size <= free else 0
        return layer.reserved[self._phase] > 0
