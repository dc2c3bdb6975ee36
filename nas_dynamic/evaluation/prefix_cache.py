"""Computation that subnets share: layers with the same choices up to and including them."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nas_dynamic.space import Architecture

__all__ = ["PrefixCache"]

MEMORY = 2 * 2**30
"""Bytes of outputs that are kept at most."""


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
        self._modules = [modules[path] for path in layers]
        self._labels = [tuple(labels) for labels in layers.values()]
        self._free = MEMORY
        self._held: Counter[int] = Counter()  # layer → bytes
        self._admitted: dict[tuple[int, str], bool] = {}
        self._outputs: dict[tuple[Any, ...], torch.Tensor] = {}
        self._buffers: dict[int, list[torch.Tensor]] = {}
        self._architecture: Architecture | None = None
        self._sharing = 0
        self._phase, self._images, self._batch = "", 0, 0
        self._calls: Counter[int] = Counter()

    def order(self, architectures: Sequence[Architecture]) -> list[Architecture]:
        """The architectures, those that share the most next to each other."""
        labels = dict.fromkeys(label for labels in self._labels for label in labels)
        places: dict[str, dict[Any, int]] = {label: {} for label in labels}

        def place(architecture: Architecture) -> list[int]:
            return [
                places[label].setdefault(architecture[label], len(places[label]))
                for label in labels
            ]

        return sorted(architectures, key=place)

    def subnet(self, architecture: Architecture, following: Architecture | None) -> None:
        """Begin with a subnet, to be followed by another one, or none."""
        common = self._agreement(self._architecture, architecture)
        for layer in [layer for layer in self._held if layer >= common]:
            self._free += self._held.pop(layer)
        self._outputs = {key: x for key, x in self._outputs.items() if key[0] < common}
        self._buffers = {layer: kept for layer, kept in self._buffers.items() if layer < common}
        self._admitted = {key: fits for key, fits in self._admitted.items() if key[0] < common}
        self._architecture = architecture
        self._sharing = self._agreement(architecture, following)

    @contextlib.contextmanager
    def phase(self, name: str, images: int) -> Iterator[None]:
        """Forward passes over all batches of one kind, one each, that many images in all."""
        self._phase, self._images, self._batch = name, images, 0
        yield

    @contextlib.contextmanager
    def calibration(self, images: int) -> Iterator[None]:
        """A phase that sets buffers: also those of the layers that it need not compute."""
        for layer, kept in self._buffers.items():
            for buffer, value in zip(self._modules[layer].buffers(), kept, strict=True):
                buffer.copy_(value)
        with self.phase("calibration", images):
            yield
        for layer in range(self._sharing):
            self._buffers[layer] = [b.clone() for b in self._modules[layer].buffers()]

    def __enter__(self) -> PrefixCache:
        self._handle = self._model.register_forward_pre_hook(self._begin)
        self._own = [vars(module).get("forward") for module in self._modules]
        for layer, module in enumerate(self._modules):
            module.forward = functools.partial(  # type: ignore[method-assign]
                self._compute, layer, module.forward
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()
        for module, own in zip(self._modules, self._own, strict=True):
            del module.forward
            if own is not None:
                module.forward = own

    def _agreement(self, one: Architecture | None, other: Architecture | None) -> int:
        """How many of the first layers are the same in two subnets."""
        if one is None or other is None:
            return 0
        for layer, labels in enumerate(self._labels):
            if any(one[label] != other[label] for label in labels):
                return layer
        return len(self._labels)

    def _begin(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._batch += 1
        self._calls.clear()

    def _compute(
        self, layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        self._calls[layer] += 1
        key = (layer, self._phase, self._batch, self._calls[layer])
        if key in self._outputs:
            return self._outputs[key].clone()  # what follows may work in place
        output = forward(*args, **kwargs)
        if layer < self._sharing and self._admits(layer, output):
            self._outputs[key] = output.clone()
        return output

    def _admits(self, layer: int, output: Any) -> bool:
        """Whether the outputs of a layer are kept: of all batches of the phase, or of none."""
        key = (layer, self._phase)
        if key not in self._admitted:
            if not torch.is_tensor(output):
                return self._admitted.setdefault(key, False)
            size = output.element_size() * output[0].numel() * self._images
            self._admitted[key] = size <= self._free
            if self._admitted[key]:
                self._free -= size
                self._held[layer] += size
        return self._admitted[key]
