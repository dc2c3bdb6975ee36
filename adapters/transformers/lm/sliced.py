"""Layers of language models that compute with the first entries of their parameters."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

from nas_dynamic.adapters.elastic.sliced import SlicedLinear, first_entries

__all__ = ["SLICED", "SlicedFusedConv1D"]


class _SlicedConv1D(Conv1D):
    """A Conv1D, a linear layer whose weight is (in, out), of which the first of both are active."""

    def resize(self, in_features: int, out_features: int) -> None:
        """Choose the active part."""
        self.nx, self.nf = in_features, out_features

    def _outputs(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter[..., : self.nf]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Active part of the weight, contiguous as in the stand-alone model."""
        return self._outputs(cast(torch.Tensor, self._parameters["weight"])[: self.nx]).contiguous()

    @property
    def bias(self) -> torch.Tensor:  # type: ignore[override]
        """Active part of the bias."""
        return self._outputs(cast(torch.Tensor, self._parameters["bias"]))


class SlicedFusedConv1D(_SlicedConv1D):
    """Fused queries, keys and values: the first outputs of each of the three are active."""

    def _outputs(self, parameter: torch.Tensor) -> torch.Tensor:
        each = parameter.unflatten(-1, (3, -1))[..., : self.nf // 3]
        return cast(torch.Tensor, each.flatten(-2))


class _SlicedEmbedding(nn.Embedding):
    """An Embedding whose first channels are active."""

    def resize(self, width: int) -> None:
        """Choose the active part."""
        self.embedding_dim = width

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Active part of the weight."""
        return cast(torch.Tensor, self._parameters["weight"])[:, : self.embedding_dim]


class _SlicedNorm(nn.Module):
    width: int

    def resize(self, width: int) -> None:
        """Choose the active part."""
        self.width = width

    @property
    def weight(self) -> torch.Tensor | None:
        """Active part of the weight."""
        return first_entries(self, "weight", self.width)


class _SlicedLayerNorm(_SlicedNorm, nn.LayerNorm):  # type: ignore[misc]
    def resize(self, width: int) -> None:
        """Choose the active part."""
        self.width, self.normalized_shape = width, (width,)

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """Active part of the bias."""
        return first_entries(self, "bias", self.width)


class _SlicedLlamaRMSNorm(_SlicedNorm, LlamaRMSNorm):  # type: ignore[misc]
    pass


class _SlicedQwen2RMSNorm(_SlicedNorm, Qwen2RMSNorm):  # type: ignore[misc]
    pass


class _SlicedQwen3RMSNorm(_SlicedNorm, Qwen3RMSNorm):  # type: ignore[misc]
    pass


SLICED: dict[type[nn.Module], Any] = {
    nn.Linear: SlicedLinear,
    Conv1D: _SlicedConv1D,
    nn.Embedding: _SlicedEmbedding,
    nn.LayerNorm: _SlicedLayerNorm,
    LlamaRMSNorm: _SlicedLlamaRMSNorm,
    Qwen2RMSNorm: _SlicedQwen2RMSNorm,
    Qwen3RMSNorm: _SlicedQwen3RMSNorm,
}
"""Class of a layer → class of its sliced form. Each needs a `resize` before it computes."""
