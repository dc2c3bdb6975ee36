"""Training-free metrics of gradients: gradient norm, snip, synflow, jacobian covariance."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from nas_dynamic.search.proxies.copied import Batch, Copied, Loss, cross_entropy

__all__ = ["correlation_score", "gradient_norm", "jacobian_covariance", "snip", "synflow"]

NORMALIZATIONS = {
    F.batch_norm,
    F.group_norm,
    F.instance_norm,
    F.layer_norm,
    F.rms_norm,
    torch.batch_norm,
    torch.group_norm,
    torch.instance_norm,
    torch.layer_norm,
    torch.rms_norm,
}


def gradient_norm(model: nn.Module, batch: Batch, *, loss: Loss = cross_entropy) -> float:
    """Return Σ ‖∂L/∂W‖₂ over the weights W, matrices and kernels alike.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: (inputs, labels).
        loss: L, of logits and labels.

    Source: Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021; biases and the
    scales of norms are left out, as in the published code.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        >>> gradient_norm(model, (torch.ones(1, 1), torch.tensor([0])))  # of (−½, ½)
        0.7071067690849304
    """
    copied = Copied(model, batch)
    with copied.computing():
        value = loss(copied.logits(copied.inputs), copied.labels)
        return sum(float(gradient.norm()) for _, gradient in copied.gradients(value))


def snip(model: nn.Module, batch: Batch, *, loss: Loss = cross_entropy) -> float:
    """Return Σ |W ⊙ ∂L/∂W| over the weights W: how much the loss hangs on each of them.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: (inputs, labels).
        loss: L, of logits and labels.

    Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR
    2019; summed over a network by Abdelfattah et al., ICLR 2021.
    """
    copied = Copied(model, batch)
    with copied.computing():
        value = loss(copied.logits(copied.inputs), copied.labels)
        return sum(float((w * gradient).abs().sum()) for w, gradient in copied.gradients(value))


def synflow(model: nn.Module, batch: Batch) -> float:
    """Return ln(1 + Σ |W ⊙ ∂R/∂W|), R the sum of the outputs of the network of |W| for ones.

    Normalisation is left out: it would hide the size of the flow. In double precision, since the
    sum grows with the product of the layers; hence the logarithm too, as in the published tables.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: (inputs, labels), of which the shape of one input counts; inputs that are whole
            numbers, such as tokens, are taken as they are.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving
    synaptic flow", NeurIPS 2020; summed over a network by Abdelfattah et al., ICLR 2021.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> with torch.no_grad():
        ...     for layer, weight in zip(model, (-2.0, 3.0)):
        ...         _ = layer.weight.fill_(weight)
        >>> sum_ = math.exp(synflow(model, (torch.zeros(1, 1), torch.tensor([0])))) - 1
        >>> round(sum_, 6)  # R = 2 · 3, and so is each weight's product with its gradient
        12.0
    """
    copied = Copied(model, batch)
    copied.parameters = {
        name: values.detach().double().abs().requires_grad_()
        if values.is_floating_point()
        else values
        for name, values in copied.parameters.items()
    }
    copied.buffers = tree_map_only(Tensor, _doubled, copied.buffers)
    ones = tree_map_only(
        Tensor,
        lambda t: torch.ones_like(_doubled(t[:1])) if t.is_floating_point() else t[:1],
        copied.inputs,
    )
    with copied.computing(), _WithoutNormalization():
        flow = copied.logits(ones).sum()
        total = sum(float((w * gradient).abs().sum()) for w, gradient in copied.gradients(flow))
    return math.log1p(total)


def jacobian_covariance(model: nn.Module, batch: Batch) -> float:
    """Return −Σ (ln(λ + k) + 1/(λ + k)), λ the eigenvalues of the correlations of Jacobians.

    A row of the Jacobian is the gradient of the summed logits with respect to one input; k = 1e-5.
    Rows that differ much tell inputs apart. A row without variance, or that is not finite, counts
    as equal to all others: the worst that there is.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: (inputs, labels), inputs of floating point, (batch, …).

    Raises:
        ValueError: the inputs have no gradient, such as tokens.

    Source: Mellor et al., "Neural Architecture Search without Training", ICML 2021, first version
    (arXiv 2006.04647v1).
    """
    copied = Copied(model, batch)
    inputs = copied.inputs
    if not torch.is_tensor(inputs) or not inputs.is_floating_point():
        raise ValueError(
            "the Jacobian is of inputs of floating point, and these are "
            f"{getattr(inputs, 'dtype', type(inputs).__name__)}; use hidden_covariance"
        )
    inputs = inputs.detach().clone().requires_grad_()
    with copied.computing():
        summed = copied.logits(inputs).sum()
        rows = (
            torch.autograd.grad(summed, inputs, allow_unused=True)[0]
            if summed.requires_grad
            else None
        )
    return correlation_score(torch.zeros_like(inputs) if rows is None else rows)


def correlation_score(rows: Tensor) -> float:
    """Return −Σ (ln(λ + k) + 1/(λ + k)) of the correlations of rows, (rows, …).

    A row without variance, or that is not finite, counts as equal to all others.
    """
    k = 1e-5
    flat = rows.detach().flatten(1).double().cpu()
    flat = flat.masked_fill(~flat.isfinite().all(1, keepdim=True), 0.0)
    flat = flat - flat.mean(1, keepdim=True)
    norms = flat.norm(dim=1, keepdim=True)
    constant = norms[:, 0] == 0
    normal = flat / torch.where(norms > 0, norms, 1.0)
    correlations = normal @ normal.T
    correlations[constant] = 1.0
    correlations[:, constant] = 1.0
    eigenvalues = torch.linalg.eigvalsh(correlations).clamp_min(0)
    return -float(((eigenvalues + k).log() + 1 / (eigenvalues + k)).sum())


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class _WithoutNormalization(TorchFunctionMode):
    """Normalisation, of modules and of functions, returns what it is given."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in NORMALIZATIONS:
            return args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))
