"""Training-free metrics of activations: NASWOT and zen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nas_dynamic.search.proxies.copied import Batch, Copied

__all__ = ["naswot", "zen"]

RECTIFIERS = {
    F.celu,
    F.elu,
    F.elu_,
    F.gelu,
    F.hardswish,
    F.hardtanh,
    F.hardtanh_,
    F.leaky_relu,
    F.leaky_relu_,
    F.mish,
    F.prelu,
    F.relu,
    F.relu6,
    F.relu_,
    F.rrelu,
    F.selu,
    F.silu,
    torch.celu,
    torch.prelu,
    torch.relu,
    torch.relu_,
    torch.rrelu,
    torch.selu,
    Tensor.relu,
    Tensor.relu_,
}
"""ReLU and what is like it: its input is either let through or held back."""


def naswot(model: nn.Module, batch: Batch) -> float:
    """Return ln |det K|; K[i, j] counts the rectifiers that inputs i and j put into one state.

    A rectifier (ReLU, GELU, SiLU, …) is on where its input is positive. Inputs that the untrained
    network tells apart have different states, which makes K more diagonal. −inf where two inputs
    have the same states.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: (inputs, labels); activations whose first dimension is not the batch's are not
            counted.

    Raises:
        ValueError: the model has no such activation.

    Source: Mellor et al., "Neural Architecture Search without Training", ICML 2021, equation 2.
    """
    copied = Copied(model, batch)
    count = len(copied.labels)
    with copied.computing(), torch.no_grad(), _States(count) as states:
        copied.output(copied.inputs)
    if states.kernel is None:
        raise ValueError(
            f"{type(model).__name__} has no rectifier (ReLU, GELU, SiLU, …) of {count} inputs, "
            "whose states NASWOT counts; use jacobian_covariance"
        )
    return float(torch.linalg.slogdet(states.kernel.cpu()).logabsdet)


def zen(
    model: nn.Module,
    batch: Batch,
    *,
    layer: str | None = None,
    alpha: float = 1e-2,
    repeats: int = 1,
    seed: int = 0,
) -> float:
    """Return ln E‖f(x) − f(x + αε)‖ + Σ ln σ of the network with Gaussian weights.

    x, ε and the weights are drawn from N(0, 1); biases are 0, scales of norms 1. σ is the root of
    the mean variance that a batch norm divides by, so that the product undoes what batch norm
    hides; without batch norm there is no such term.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: (inputs, labels), of which the shape of the inputs counts.
        layer: name of the module whose output is f, the feature map before pooling. By default f is
            the last tensor of four dimensions and more than one position that the model computes;
            the logits where there is none.
        alpha: size of the step.
        repeats: number of draws that are averaged.
        seed: of the draws, the same on every device.

    Source: Lin et al., "Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition", ICCV
    2021, algorithm 1. The norm is the sum of absolute values, as in the published code.
    """
    copied = Copied(model, batch)
    generator = torch.Generator().manual_seed(seed)

    def drawn(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator).to(copied.device)

    scores = []
    with copied.computing(), torch.no_grad():
        for _ in range(repeats):
            copied.parameters = {
                name: _initial(name, values, drawn) for name, values in copied.parameters.items()
            }
            x, step = drawn(copied.inputs.shape), alpha * drawn(copied.inputs.shape)
            plain, scale = _features(copied, x, layer)
            moved, _ = _features(copied, x + step, layer)
            distance = float((plain - moved).abs().flatten(1).sum(1).mean())
            scores.append(math.log(distance) + scale if distance > 0 else -math.inf)
    return sum(scores) / repeats


def _initial(name: str, values: Tensor, drawn: Callable[[torch.Size], Tensor]) -> Tensor:
    if not values.is_floating_point():
        return values
    if values.dim() > 1:
        return drawn(values.shape)
    last = name.rpartition(".")[2]
    return {"weight": torch.ones_like, "bias": torch.zeros_like}.get(last, torch.clone)(values)


def _features(copied: Copied, images: Tensor, layer: str | None) -> tuple[Tensor, float]:
    """Return f and the sum of the logarithms of what batch norm divides by."""
    with _Features() as seen:
        if layer is not None:
            found = copied.outputs_of(layer, images)[-1]
        else:
            logits = copied.logits(images)
            found = logits if seen.last is None else seen.last
    return found, seen.log_scale


class _Watching(TorchFunctionMode):
    """Sees the functions that a model calls, whether in modules or by themselves."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.before(func, args[0] if args else kwargs.get("input"))
        result = func(*args, **kwargs)
        self.after(result)
        return result

    def before(self, func: Any, first: Any) -> None:
        """See a function and its first argument."""

    def after(self, result: Any) -> None:
        """See what it returned."""


class _States(_Watching):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.kernel: Tensor | None = None

    def before(self, func: Any, first: Any) -> None:
        if func in RECTIFIERS and first.dim() > 1 and len(first) == self.count:
            on = (first > 0).flatten(1).float()
            kernel = (on @ on.T).double() + ((1 - on) @ (1 - on).T).double()
            self.kernel = kernel if self.kernel is None else self.kernel + kernel


class _Features(_Watching):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None
        self.log_scale = 0.0

    def before(self, func: Any, first: Any) -> None:
        if func in (F.batch_norm, torch.batch_norm):
            dims = [dim for dim in range(first.dim()) if dim != 1]
            self.log_scale += 0.5 * math.log(
                max(float(first.var(dims, correction=0).mean()), 1e-30)
            )

    def after(self, result: Any) -> None:
        if torch.is_tensor(result) and result.dim() == 4 and result.shape[2:].numel() > 1:
            self.last = result
