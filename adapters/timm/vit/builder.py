"""Constructor arguments of vision transformers, as JSON values, read from a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from timm.layers import (
    Attention,
    DropPath,
    LayerNorm,
    LayerNormFp32,
    LayerScale,
    Mlp,
    PatchDropout,
    PatchEmbed,
    RmsNorm,
    RmsNormFp32,
    get_act_layer,
)
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from nas_dynamic.adapters.timm.recipe import Recipe, to_json
from nas_dynamic.adapters.timm.vit.attention import ATTENTIONS
from nas_dynamic.adapters.timm.vit.space import BlockShape

__all__ = ["block_fn", "constructor_arguments", "mlp_ratio_of", "operation", "recipe_of"]

_NORMS = {
    nn.LayerNorm: "layernorm",
    LayerNorm: "layernorm",
    LayerNormFp32: "layernormfp32",
    RmsNorm: "rmsnorm",
    RmsNormFp32: "rmsnormfp32",
}
_NORM_EPS = 1e-6  # what timm's norm layers have unless told otherwise
_ACTIVATIONS = {nn.GELU: "gelu"} | {
    get_act_layer(name): name
    for name in ("relu", "relu6", "silu", "mish", "hard_swish", "gelu", "gelu_tanh", "quick_gelu")
}
_SUPPORTED = {
    VisionTransformer,
    PatchEmbed,
    Block,
    Attention,
    Mlp,
    LayerScale,
    PatchDropout,
    DropPath,
    nn.Sequential,
    nn.Linear,
    nn.Conv2d,
    nn.Identity,
    nn.Dropout,
    *_NORMS,
    *_ACTIVATIONS,
}


def constructor_arguments(model: Any) -> dict[str, Any]:
    """Return the arguments that timm's `VisionTransformer` makes a model from, as JSON values.

    Drop rates are left out.

    Args:
        model: a VisionTransformer.

    Raises:
        TypeError: the model has a part that a VisionTransformer of plain blocks does not.
        ValueError: the blocks differ in shape.
    """
    _check_supported(model)
    embed, blocks = model.patch_embed, list(model.blocks)
    block = blocks[0]
    shapes = {(b.attn.num_heads, b.attn.attn_dim, b.mlp.fc1.out_features) for b in blocks}
    if len(shapes) > 1:
        raise ValueError(
            "the blocks differ in (heads, width of attention, hidden features): "
            f"{', '.join(map(str, sorted(shapes)))}; start from a model whose blocks are alike, "
            "such as the one that these were sliced from"
        )
    return {
        "img_size": _scalar_if_square(embed.img_size),
        "patch_size": _scalar_if_square(embed.patch_size),
        "in_chans": model.in_chans,
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": mlp_ratio_of(model.embed_dim, block.mlp.fc1.out_features),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": _present(block.attn.q_norm),
        "scale_attn_norm": _present(block.attn.norm),
        "scale_mlp_norm": _present(block.mlp.norm),
        "proj_bias": block.attn.proj.bias is not None,
        "init_values": block.ls1.init_values if _present(block.ls1) else None,
        "class_token": model.has_class_token,
        "pos_embed": "none" if model.pos_embed is None else "learn",
        "no_embed_class": model.no_embed_class,
        "reg_tokens": model.num_reg_tokens,
        "pre_norm": _present(model.norm_pre),
        "final_norm": _present(model.norm) or _present(model.fc_norm),
        "fc_norm": _present(model.fc_norm),
        "pool_include_prefix": model.pool_include_prefix,
        "dynamic_img_size": model.dynamic_img_size,
        "dynamic_img_pad": embed.dynamic_img_pad,
        "embed_norm_layer": _norm_argument(embed.norm) if _present(embed.norm) else None,
        "norm_layer": _norm_argument(block.norm1),
        "act_layer": operation(block.mlp.act),
    }


def recipe_of(
    arguments: Mapping[str, Any], head_dim: int, embed_dim: int, blocks: Sequence[BlockShape]
) -> Recipe:
    """Return the recipe of a VisionTransformer.

    It has a `block_fn` where the arguments of the constructor do not say what the blocks are.

    Args:
        arguments: of the constructor, but for the sizes that follow.
        head_dim: width of a head.
        embed_dim: channels of a token.
        blocks: what the blocks are.
    """
    own = {**arguments, "embed_dim": embed_dim, "depth": len(blocks)}
    first = blocks[0]
    fills = first.heads * head_dim == embed_dim and first.attention == "softmax"
    if fills and all(block == first for block in blocks):
        own |= {"num_heads": first.heads, "mlp_ratio": first.mlp_ratio}
    else:
        del own["num_heads"], own["mlp_ratio"]
        shapes = [
            {
                "num_heads": block.heads,
                "attn_head_dim": head_dim,
                "mlp_ratio": block.mlp_ratio,
                "attention": block.attention,
            }
            for block in blocks
        ]
        own["block_fn"] = partial(block_fn, shapes=shapes)
    return {"model": to_json(partial(VisionTransformer, **own))}


def block_fn(*, shapes: Sequence[Mapping[str, Any]], dim: int, depth: int, **kwargs: Any) -> Block:
    """Build block number `depth`, with a size and an attention of its own.

    Args:
        shapes: for each block `num_heads`, `attn_head_dim`, `mlp_ratio` and `attention`, a key of
            `ATTENTIONS`.
        dim: embedding dimension.
        depth: number of the block.
        kwargs: further arguments that `VisionTransformer` gives to every block.
    """
    shape = shapes[depth]
    kwargs |= {"num_heads": 1, "mlp_ratio": shape["mlp_ratio"]}
    block = Block(dim, depth=depth, **kwargs)
    # Block takes the width of a head from `dim`; only the attention itself can be told.
    block.attn = ATTENTIONS[shape["attention"]](
        dim,
        num_heads=shape["num_heads"],
        attn_head_dim=shape["attn_head_dim"],
        scale_norm=kwargs["scale_attn_norm"],
        **{name: kwargs[name] for name in _ATTENTION_ARGUMENTS},
    )
    return block


_ATTENTION_ARGUMENTS = (
    "qkv_bias",
    "qk_norm",
    "proj_bias",
    "attn_drop",
    "proj_drop",
    "norm_layer",
    "device",
    "dtype",
)


def mlp_ratio_of(embed_dim: int, hidden_features: int) -> float:
    """Return the ratio that gives timm the hidden features, as `int(embed_dim * ratio)`."""
    ratio = hidden_features / embed_dim
    return ratio if int(embed_dim * ratio) == hidden_features else math.nextafter(ratio, math.inf)


def _check_supported(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module) not in _SUPPORTED:
            raise TypeError(
                f"{name or 'the model'} is a {type(module).__name__}, which cannot be sliced. "
                "Supported are VisionTransformers of PatchEmbed, Block, Attention, Mlp, layer "
                "scale, layer or RMS norms and usual activations, without attention pooling: "
                "choose another model, or build one with those (global_pool='avg' or 'token')"
            )


def operation(module: Any) -> str | float | None:
    """Return what no shape of a module tells: which activation it is, epsilon of a norm."""
    if type(module) not in _ACTIVATIONS:
        return getattr(module, "eps", None)
    tanh = getattr(module, "approximate", "none") == "tanh"
    return "gelu_tanh" if tanh else _ACTIVATIONS[type(module)]


def _norm_argument(norm: Any) -> Any:
    cls: type[nn.Module] = type(norm)
    return _NORMS[cls] if norm.eps == _NORM_EPS else to_json(partial(cls, eps=norm.eps))


def _present(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity)


def _scalar_if_square(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
