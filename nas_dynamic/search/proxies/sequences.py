"""Training-free metrics of recurrent networks and transformers."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nas_dynamic.search.proxies.copied import Batch, Copied, Loss, cross_entropy
from nas_dynamic.search.proxies.gradients import correlation_score

__all__ = ["head_confidence", "head_importance", "hidden_covariance"]


def hidden_covariance(
    model: nn.Module,
    batch: Batch,
    *,
    layer: str | None = None,
    of: Literal["units", "inputs"] = "units",
    batch_dim: int | None = None,
) -> float:
    """Return −Σ (ln(λ + k) + 1/(λ + k)), λ the eigenvalues of the correlations of hidden states.

    k = 1e-5. Units that do the same, or inputs that are not told apart, lower it.

    Args:
        model: any module; of a supernet the active subnet counts.
        batch: (inputs, labels).
        layer: name of the module whose outputs are the hidden states, (…, units); one that is
            called at each time gives one tensor a call. The first `nn.RNN`, `nn.LSTM` or `nn.GRU`
            by default.
        of: `"units"`: correlations of hidden units over inputs and times, which is what the
            published code computes; `"inputs"`: of inputs over units and times, as Mellor et al.
            do with Jacobians.
        batch_dim: dimension of the inputs, for `of="inputs"`. By default that of the layer where it
            is one of torch's, else 0.

    Raises:
        ValueError: the model has no such layer, or none was named and none is torch's.

    Source: Serianni and Kalita, "Training-free Neural Architecture Search for RNNs and
    Transformers", ACL 2023, section 4.2.
    """
    if layer is None:
        recurrent = [n for n, m in model.named_modules() if isinstance(m, nn.RNNBase)]
        if not recurrent:
            raise ValueError(
                f"{type(model).__name__} has no nn.RNN, nn.LSTM or nn.GRU; name the module whose "
                "outputs are the hidden states: layer='…'"
            )
        layer = recurrent[0]
    copied = Copied(model, batch)
    with copied.computing(), torch.no_grad():
        states = copied.outputs_of(layer, copied.inputs)
    if of == "units":
        rows = [state.flatten(0, -2).T for state in states]
    else:
        if batch_dim is None:
            module = model.get_submodule(layer)
            batch_dim = int(isinstance(module, nn.RNNBase) and not module.batch_first)
        rows = [state.movedim(batch_dim, 0).flatten(1) for state in states]
    return correlation_score(torch.cat(rows, dim=1))


def head_confidence(model: nn.Module, batch: Batch, *, mean: bool = False) -> float:
    """Return the sum over attention heads of their mean greatest attention weight.

    The mean is over inputs and queries. A head that looks at one position is sure of itself.

    Args:
        model: a transformer; heads are seen in `nn.MultiheadAttention`, in torch's
            `scaled_dot_product_attention`, and as softmax over the last of four dimensions.
        batch: (inputs, labels).
        mean: over heads, in place of the sum, which grows with their number.

    Raises:
        ValueError: no attention was seen.

    Source: Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019, section 4; summed over a
    network by Serianni and Kalita, ACL 2023.
    """
    copied = Copied(model, batch)
    with copied.computing(), torch.no_grad():
        heads = _heads(copied)[0]
    values = torch.cat([weights.amax(-1).mean((0, 2)) for weights in heads])
    return float(values.mean() if mean else values.sum())


def head_importance(
    model: nn.Module, batch: Batch, *, loss: Loss = cross_entropy, mean: bool = False
) -> float:
    """Return the sum over attention heads of E |Attᵀ ∂L/∂Att|, Att a head's output for an input.

    That is how much the loss changes when the head fades out. The product is computed from the
    attention weights A: as Att = A V, Attᵀ ∂L/∂Att = Σ A ⊙ ∂L/∂A.

    Args:
        model: a transformer, as in `head_confidence`.
        batch: (inputs, labels).
        loss: L, of logits and labels.
        mean: over heads, in place of the sum, which grows with their number.

    Raises:
        ValueError: no attention was seen.

    Source: Michel et al., "Are Sixteen Heads Really Better than One?", NeurIPS 2019, equation 2;
    summed over a network by Serianni and Kalita, ACL 2023.
    """
    copied = Copied(model, batch)
    with copied.computing():
        heads, logits = _heads(copied)
        value = loss(logits, copied.labels)
        gradients = torch.autograd.grad(value, heads, allow_unused=True)
    values = torch.cat(
        [
            torch.zeros_like(weights[0, :, 0, 0].detach())
            if gradient is None
            else (weights.detach() * gradient).sum((2, 3)).abs().mean(0)
            for weights, gradient in zip(heads, gradients, strict=True)
        ]
    )
    return float(values.mean() if mean else values.sum())


def _heads(copied: Copied) -> tuple[list[Tensor], Tensor]:
    """Return attention weights, each (inputs, heads, queries, keys), and the logits."""
    with _AttentionWeights() as seen:
        logits = copied.logits(copied.inputs)
    if not seen.weights:
        raise ValueError(
            f"{type(copied.model).__name__} computes no attention that is seen: "
            "nn.MultiheadAttention, scaled_dot_product_attention, or a softmax over the last of "
            "four dimensions (inputs, heads, queries, keys)"
        )
    return seen.weights, logits


class _AttentionWeights(TorchFunctionMode):
    """Keeps attention weights, and computes those that fused attention would hide."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self.multi_head(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in (F.softmax, torch.softmax, Tensor.softmax) and result.dim() == 4:
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            if dim in (-1, 3):
                self.weights.append(result)
        return result

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute torch's scaled_dot_product_attention, in evaluation mode."""
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
        scores = query @ key.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
        if is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~seen, -math.inf)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -math.inf)
            else:
                scores = scores + attn_mask
        weights = scores.softmax(-1)
        self.weights.append(weights)
        return weights @ value

    def multi_head(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Compute nn.MultiheadAttention, through `attention`."""
        names = (
            "embed_dim_to_check",
            "num_heads",
            "in_proj_weight",
            "in_proj_bias",
            "bias_k",
            "bias_v",
            "add_zero_attn",
            "dropout_p",
            "out_proj_weight",
            "out_proj_bias",
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        unknown = [
            name
            for name in ("bias_k", "bias_v", "add_zero_attn", "static_k", "static_v")
            if given.get(name) is not None and given.get(name) is not False
        ]
        if unknown:
            raise ValueError(f"attention with {unknown} is not seen into; leave it out")
        heads, bias = given["num_heads"], given["in_proj_bias"]
        if given.get("use_separate_proj_weight"):
            matrices = [given[f"{name}_proj_weight"] for name in "qkv"]
        else:
            matrices = given["in_proj_weight"].chunk(3)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        # Torch has (time, inputs, features) here; without inputs, (time, features).
        batched = query.dim() == 3
        projected = [
            F.linear(x if batched else x.unsqueeze(1), matrix, b)
            .unflatten(-1, (heads, -1))
            .permute(1, 2, 0, 3)
            for x, matrix, b in zip((query, key, value), matrices, biases, strict=True)
        ]
        inputs, _, times, _ = projected[0].shape
        mask = _added(given.get("attn_mask"), query.dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (inputs, heads))
        padding = _added(given.get("key_padding_mask"), query.dtype)
        if padding is not None:
            padding = padding.reshape(inputs, 1, 1, -1)
            mask = padding if mask is None else mask + padding
        q, k, v = projected
        attended = self.attention(q, k, v, mask)
        output = F.linear(
            attended.permute(2, 0, 1, 3).reshape(times, inputs, -1),
            given["out_proj_weight"],
            given["out_proj_bias"],
        )
        weights = self.weights[-1]
        if given.get("average_attn_weights", True):
            weights = weights.mean(1)
        shown = weights if given.get("need_weights", True) else None
        if batched:
            return output, shown
        return output.squeeze(1), None if shown is None else shown.squeeze(0)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask as what is added to scores: torch's marks what is not attended to."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
