"""The kinds of language models that can be elastic, and what is called how in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from nas_dynamic.adapters.transformers.lm import modeling_layerwise as layerwise
from nas_dynamic.adapters.transformers.lm.sliced import SlicedFusedConv1D
from nas_dynamic.adapters.transformers.lm.space import LayerShape, LmSpace

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """A kind of language model.

    Attributes:
        plain: the class of the model.
        layerwise: the class of models whose layers differ.
        layers: path of the layers in the model.
        divides: whether the plain configuration asks for heads that divide the width.
    """

    plain: type[PreTrainedModel]
    layerwise: Any
    layers: str = "model.layers"
    divides: bool = False

    def head_dim(self, config: Any) -> int:
        """Return the width of a head."""
        own = getattr(config, "head_dim", None)
        return int(own or config.hidden_size // config.num_attention_heads)

    def key_value_heads(self, config: Any) -> int:
        """Return the number of key and value heads of the model."""
        return int(config.num_key_value_heads)

    def ffn(self, config: Any) -> int:
        """Return the hidden features of the model's feed-forward parts."""
        return int(config.intermediate_size)

    def check(self, config: Any, space: LmSpace) -> None:
        """Check what this kind of model asks for beside the space."""
        windows = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
        if windows:
            raise ValueError(
                f"the layers have {', '.join(sorted(windows))}; only full attention in all layers "
                "can be elastic: set use_sliding_window=False in the configuration"
            )

    def is_plain(self, space: LmSpace, width: int, layers: Sequence[LayerShape]) -> bool:
        """Return whether the plain configuration can say what the layers are."""
        return _alike(layers) and not (self.divides and width % layers[0].heads)

    def sizes(self, space: LmSpace, width: int, layer: LayerShape) -> dict[str, Any]:
        """Return the entries of the configuration for layers that are alike."""
        return {
            "hidden_size": width,
            "intermediate_size": layer.ffn,
            "num_attention_heads": layer.heads,
            "num_key_value_heads": space.key_value_heads_of(layer.heads),
            "head_dim": space.head_dim,
        }

    def resize_outside(self, model: Any, width: int) -> None:
        """Choose the active part of what is outside of the layers."""
        inner = model.model
        inner.embed_tokens.resize(width)
        inner.norm.resize(width)
        model.lm_head.resize(width, model.lm_head.out_features)

    def resize_layer(self, layer: Any, space: LmSpace, width: int, shape: LayerShape) -> None:
        """Choose the active part of a layer."""
        attn, mlp = layer.self_attn, layer.mlp
        key_value_heads = space.key_value_heads_of(shape.heads)
        queries, keys = shape.heads * space.head_dim, key_value_heads * space.head_dim
        attn.num_key_value_groups = shape.heads // key_value_heads
        attn.q_proj.resize(width, queries)
        attn.k_proj.resize(width, keys)
        attn.v_proj.resize(width, keys)
        attn.o_proj.resize(queries, width)
        mlp.gate_proj.resize(width, shape.ffn)
        mlp.up_proj.resize(width, shape.ffn)
        mlp.down_proj.resize(shape.ffn, width)
        layer.input_layernorm.resize(width)
        layer.post_attention_layernorm.resize(width)

    def attention(self, layer: Any) -> Any:
        """Return the attention of a layer."""
        return layer.self_attn

    def outputs(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        """Return the projections from heads, and from hidden features, to the hidden states."""
        return layer.self_attn.o_proj, layer.mlp.down_proj

    def projections(self, layer: Any) -> tuple[nn.Module, ...]:
        """Return the projections to queries, keys and values, or the one to all three."""
        return layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj

    def reorder(
        self, layer: Any, queries: torch.Tensor, keys: torch.Tensor, features: torch.Tensor
    ) -> None:
        """Put the features of query heads, of key and value heads, and hidden ones in an order."""
        attn, mlp = layer.self_attn, layer.mlp
        orders = ((attn.q_proj, queries), (attn.k_proj, keys), (attn.v_proj, keys))
        for linear, order in (*orders, (mlp.gate_proj, features), (mlp.up_proj, features)):
            _reorder(linear.weight, 0, order)
            _reorder(linear.bias, 0, order)
        _reorder(attn.o_proj.weight, 1, queries)
        _reorder(mlp.down_proj.weight, 1, features)

    def sliced_class(self, name: str, module: nn.Module, known: dict[Any, Any]) -> Any:
        """Return the sliced class of a module, None if it stays."""
        return None if name.endswith(("q_norm", "k_norm")) else known.get(type(module))


class _GPT2(Family):
    def key_value_heads(self, config: Any) -> int:
        return int(config.num_attention_heads)

    def ffn(self, config: Any) -> int:
        return int(config.n_inner or 4 * config.hidden_size)

    def check(self, config: Any, space: LmSpace) -> None:
        if config.add_cross_attention:
            raise ValueError("a GPT-2 with cross attention cannot be elastic; make it without")
        for width in space.candidates.get("width", ()):
            if width % space.head_dim:
                raise ValueError(
                    f"width {width} is no multiple of {space.head_dim}, the width of a head, as "
                    f"GPT-2 asks for; take {max(width // space.head_dim, 1) * space.head_dim}"
                )

    def is_plain(self, space: LmSpace, width: int, layers: Sequence[LayerShape]) -> bool:
        return _alike(layers) and layers[0].heads * space.head_dim == width

    def sizes(self, space: LmSpace, width: int, layer: LayerShape) -> dict[str, Any]:
        # Its heads fill the width; where they do not, the layers' own numbers say what they are.
        return {"n_embd": width, "n_head": width // space.head_dim, "n_inner": layer.ffn}

    def resize_outside(self, model: Any, width: int) -> None:
        inner = model.transformer
        inner.wte.resize(width)
        inner.wpe.resize(width)
        inner.ln_f.resize(width)
        model.lm_head.resize(width, model.lm_head.out_features)

    def resize_layer(self, layer: Any, space: LmSpace, width: int, shape: LayerShape) -> None:
        attn, mlp = layer.attn, layer.mlp
        features = shape.heads * space.head_dim
        attn.num_heads, attn.split_size = shape.heads, features
        attn.c_attn.resize(width, 3 * features)
        attn.c_proj.resize(features, width)
        mlp.c_fc.resize(width, shape.ffn)
        mlp.c_proj.resize(shape.ffn, width)
        layer.ln_1.resize(width)
        layer.ln_2.resize(width)

    def attention(self, layer: Any) -> Any:
        return layer.attn

    def outputs(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        return layer.attn.c_proj, layer.mlp.c_proj

    def projections(self, layer: Any) -> tuple[nn.Module, ...]:
        return (layer.attn.c_attn,)

    def reorder(
        self, layer: Any, queries: torch.Tensor, keys: torch.Tensor, features: torch.Tensor
    ) -> None:
        fused, mlp = layer.attn.c_attn, layer.mlp
        each = torch.cat([queries + len(queries) * part for part in range(3)])
        for projection, order in ((fused, each), (mlp.c_fc, features)):
            _reorder(projection.weight, 1, order)
            _reorder(projection.bias, 0, order)
        _reorder(layer.attn.c_proj.weight, 0, queries)
        _reorder(mlp.c_proj.weight, 0, features)

    def sliced_class(self, name: str, module: nn.Module, known: dict[Any, Any]) -> Any:
        return SlicedFusedConv1D if name.endswith("c_attn") else known.get(type(module))


FAMILIES: dict[type[nn.Module], Family] = {
    family.plain: family
    for family in (
        Family(LlamaForCausalLM, layerwise.LayerwiseLlamaForCausalLM, divides=True),
        Family(Qwen2ForCausalLM, layerwise.LayerwiseQwen2ForCausalLM),
        Family(Qwen3ForCausalLM, layerwise.LayerwiseQwen3ForCausalLM),
        _GPT2(GPT2LMHeadModel, layerwise.LayerwiseGPT2LMHeadModel, layers="transformer.h"),
    )
}
"""Class of a model → its kind."""


def family_of(model: nn.Module) -> Family:
    """Return the kind of a model.

    Raises:
        TypeError: it is of none.
    """
    family = FAMILIES.get(type(model))
    if family is None:
        raise TypeError(
            f"the model is a {type(model).__name__}; language models that can be elastic are "
            f"{', '.join(cls.__name__ for cls in FAMILIES)}"
        )
    return family


def _alike(layers: Sequence[LayerShape]) -> bool:
    """Return whether a plain model has such layers, but for their sizes."""
    return layers[0].attention == "softmax" and all(layer == layers[0] for layer in layers)


def _reorder(parameter: torch.Tensor | None, dim: int, order: torch.Tensor) -> None:
    if parameter is not None:
        parameter.copy_(parameter.index_select(dim, order))
