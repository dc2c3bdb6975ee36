"""A model computed with tensors of its own: whatever that does, the model stays as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from nas_dynamic.evaluation.inference import evaluation_mode

__all__ = ["Batch", "Copied", "Loss", "cross_entropy"]

Batch = tuple[Any, Tensor]
"""Inputs, a tensor or the keyword arguments of a forward pass, and labels."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits, labels → a number."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy; of sequences, (batch, time), logits have the classes last."""
    if logits.dim() == 3 and labels.dim() == 2:
        logits = logits.transpose(1, 2)
    return F.cross_entropy(logits, labels)


class Copied:
    """A model with tensors of its own, that its parameters and buffers are not changed through.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: inputs and labels, moved to the model's device.

    Attributes:
        parameters: name → values with gradients of their own, frozen ones too. They may be
            replaced before a pass.
        buffers: name → a copy.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model = model
        self.parameters = {
            name: parameter.detach().requires_grad_(parameter.is_floating_point())
            for name, parameter in model.named_parameters()
        }
        self.buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        tensors = [*self.parameters.values(), *self.buffers.values()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.inputs, self.labels = tree_map_only(Tensor, lambda t: t.to(self.device), tuple(batch))

    @property
    def weights(self) -> dict[str, Tensor]:
        """Matrices and kernels: no biases, no scales of a norm."""
        return {
            name: values
            for name, values in self.parameters.items()
            if values.dim() > 1 and values.is_floating_point()
        }

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Normalise by the statistics of the batch, drop nothing; put modes and the rng back."""
        others = [] if self.device.type == "cpu" else [self.device]
        kind = others[0].type if others else "cuda"
        with (
            evaluation_mode(self.model),
            torch.random.fork_rng(others, device_type=kind),
            torch.enable_grad(),
        ):
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.training = True
            yield

    def output(self, inputs: Any) -> Any:
        """Return what the model gives for inputs, within `computing`."""
        tensors = {**self.parameters, **self.buffers}
        if isinstance(inputs, Mapping):
            return torch.func.functional_call(self.model, tensors, (), dict(inputs))
        return torch.func.functional_call(self.model, tensors, (inputs,))

    def logits(self, inputs: Any) -> Tensor:
        """Return the logits, or the first tensor of floating point that the model gives."""
        output = self.output(inputs)
        logits = getattr(output, "logits", None)
        found = [
            leaf
            for leaf in tree_leaves(output if logits is None else logits)
            if torch.is_tensor(leaf) and leaf.is_floating_point()
        ]
        if not found:
            raise ValueError(
                f"{type(self.model).__name__} gives no tensor of floating point, but "
                f"{type(output).__name__}; wrap it in a module that returns its logits"
            )
        return found[0]

    def outputs_of(self, layer: str, inputs: Any) -> list[Tensor]:
        """Return what a module inside of the model gives: one tensor for each time it is called.

        Raises:
            ValueError: the model has no such module, or did not call it.
        """
        modules = dict(self.model.named_modules())
        if layer not in modules:
            raise ValueError(
                f"{type(self.model).__name__} has no module {layer!r}; its modules are "
                f"{', '.join(filter(None, modules))}"
            )
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(next(leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf)))

        hook = modules[layer].register_forward_hook(keep)
        try:
            self.output(inputs)
        finally:
            hook.remove()
        if not outputs:
            raise ValueError(f"the active subnet does not compute the module {layer!r}")
        return outputs

    def gradients(self, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (weight, gradient of a number) of each weight that the number depends on."""
        weights = list(self.weights.values())
        if not value.requires_grad or not weights:
            return []
        found = torch.autograd.grad(value, weights, allow_unused=True)
        return [
            (weight.detach(), gradient)
            for weight, gradient in zip(weights, found, strict=True)
            if gradient is not None
        ]
