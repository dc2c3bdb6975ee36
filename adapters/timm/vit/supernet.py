"""Elastic vision transformers: depth, embedding, heads, MLP ratio and attention are choices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import timm
import torch
from timm.layers import Attention
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from nas_dynamic.adapters.elastic.supernet import ElasticBlocks
from nas_dynamic.adapters.elastic.table import BlockTable
from nas_dynamic.adapters.timm.recipe import Recipe, build
from nas_dynamic.adapters.timm.supernet import Measure, Supernet
from nas_dynamic.adapters.timm.vit.attention import ElasticAttention
from nas_dynamic.adapters.timm.vit.builder import constructor_arguments, operation, recipe_of
from nas_dynamic.adapters.timm.vit.features import ElasticFeatures
from nas_dynamic.adapters.timm.vit.sliced import SLICED, SlicedQKV, resize_block, resize_present
from nas_dynamic.adapters.timm.vit.space import BlockShape, VitSpace
from nas_dynamic.space import Architecture

__all__ = ["ElasticVisionTransformer", "elastic_vit"]


def elastic_vit(
    model: str | VisionTransformer | FeatureGetterNet,
    *,
    depth: Sequence[int] | None = None,
    embed_dim: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    mlp_ratio: Sequence[float] | None = None,
    attention: Sequence[str] | None = None,
    per_layer: bool = True,
    **model_args: Any,
) -> ElasticVisionTransformer | ElasticFeatures:
    """Make a supernet whose largest subnet is a given timm VisionTransformer.

    A subnet computes with the first blocks, channels, heads and hidden features; the width of a
    head never changes. What is given no candidates stays as in the model, and has no label.
    Candidates include the model's own value.

    Args:
        model: a name for `timm.create_model`; or a model, which is copied and left as it is.
        depth: numbers of blocks; label `depth`.
        embed_dim: embedding dimensions; label `embed_dim`.
        heads: numbers of heads; labels `heads1`, `heads2`, … of the layers. Without candidates
            there are as many as fill the embedding, embed_dim / width of a head.
        mlp_ratio: hidden features of the MLP over embed_dim; labels `mlp_ratio1`, ….
        attention: `"softmax"`, and `"linear"`, see `LinearAttention`; labels `attention1`, ….
        per_layer: False for one choice for all layers; labels `heads`, `mlp_ratio`, `attention`.
        model_args: of `timm.create_model`, where `model` is a name: `pretrained`, `img_size`, ….
            With `features_only` the supernet is a FeatureGetterNet, and returns feature maps.

    Raises:
        ValueError: candidates that the model cannot be sliced to, or that leave out its own value;
            or that change the features of an extractor: depth and embed_dim.
        TypeError: the model has a part that cannot be sliced.

    Source: Chen et al., "AutoFormer: Searching Transformers for Visual Recognition", ICCV 2021,
        arXiv 2107.00651.

    Example:
        >>> supernet = elastic_vit(
        ...     "vit_tiny_patch16_224", depth=[10, 12], embed_dim=[128, 192], heads=[2, 3],
        ... )
        >>> supernet.space
        SearchSpace(14 choices, 16,384 architectures)
        >>> smaller = supernet.architecture | {"depth": 10, "embed_dim": 128, "heads1": 2}
        >>> supernet.activate(smaller)
        >>> subnet = supernet.extract(smaller)
        >>> type(subnet).__name__, len(subnet.blocks), subnet.embed_dim
        ('VisionTransformer', 10, 128)
    """
    supernet: Any
    if isinstance(model, str):
        supernet = timm.create_model(model, **model_args)
    elif model_args:
        raise ValueError(
            f"{', '.join(model_args)}: timm.create_model's arguments go with the name of a model, "
            "and this one is constructed already"
        )
    else:
        supernet = copy.deepcopy(model)
    candidates = {
        "depth": depth,
        "embed_dim": embed_dim,
        "heads": heads,
        "mlp_ratio": mlp_ratio,
        "attention": attention,
    }
    if not isinstance(supernet, FeatureGetterNet):
        return _sliced(supernet, candidates, per_layer)
    for name, what in {"depth": "number", "embed_dim": "width"}.items():
        if candidates[name] is not None:
            raise ValueError(
                f"{name} cannot be elastic in a feature extractor: it would change the {what} of "
                "the feature maps, for which what comes after it is made. Give candidates of "
                "heads, mlp_ratio or attention"
            )
    extractor: Any = supernet
    inside = _sliced(extractor.model, candidates, per_layer)
    extractor.__class__ = ElasticFeatures
    extractor.space, extractor.base = inside.space, inside.base
    extractor.activate(inside.base)
    return cast(ElasticFeatures, extractor)


def _sliced(
    supernet: Any, candidates: Mapping[str, Sequence[Any] | None], per_layer: bool
) -> ElasticVisionTransformer:
    """Turn a VisionTransformer into a supernet, in place."""
    arguments = constructor_arguments(supernet)
    space = VitSpace(
        arguments,
        supernet.blocks[0].attn.head_dim,
        {name: values for name, values in candidates.items() if values is not None},
        per_layer,
    )
    for name, module in supernet.named_modules():
        if type(module) in SLICED:
            module.__class__ = SlicedQKV if name.endswith(".qkv") else SLICED[type(module)]
        elif type(module) is Attention:
            module.__class__ = ElasticAttention
    supernet.__class__ = ElasticVisionTransformer
    assert isinstance(supernet, ElasticVisionTransformer)
    supernet._arguments, supernet.space, supernet.base = arguments, space, space.base
    supernet.activate(space.base)
    _check_rebuilt(supernet)
    return supernet


class ElasticVisionTransformer(ElasticBlocks, Supernet, VisionTransformer):
    """A timm VisionTransformer that computes one of its subnets; made by `elastic_vit`.

    Names and shapes of the parameters are those of the model that it was made from. What reads
    `cls_token`, `pos_embed`, `blocks`, or the weight of a layer, gets the active part;
    `parameters()`, `modules()` and `state_dict()` give everything.

    A weight that the subnet uses a part of gets a gradient that is zero elsewhere: to an optimizer
    it is trained as a whole, and momentum and weight decay move all of it. Only what the subnet
    does not use at all, the blocks beyond its depth, gets none and is idle.
    """

    space: VitSpace
    block_path = "blocks"
    _arguments: dict[str, Any]
    _width: int
    _depth: int

    @property
    def layer_labels(self) -> dict[str, tuple[str, ...]]:
        """See `Supernet.layer_labels`."""
        width = tuple(label for label in self.space.labels if label == "embed_dim")
        blocks = enumerate(self.space.layer_labels)
        return {"patch_embed": width} | {f"blocks.{i}": (*own.values(),) for i, own in blocks}

    def extract(self, architecture: Architecture, **rates: float) -> VisionTransformer:
        """Return the stand-alone subnet, as `Supernet.extract` does; what is frozen stays frozen.

        Args:
            architecture: the subnet; the active one stays.
            rates: drop rates of `VisionTransformer`; 0 by default, whatever the supernet's.
        """
        self.space.validate(architecture)
        return self._freeze(self._filled(self._rebuilt(architecture, **rates), architecture))

    def subnet_table(
        self, measure: Callable[[nn.Module], float], device: torch.device | str = "meta"
    ) -> BlockTable:
        """Return architecture → any complexity that is a sum over blocks.

        Args:
            measure: the complexity of a stand-alone subnet of one or two blocks.
            device: where those are built.
        """

        def measure_blocks(embed_dim: int, blocks: Sequence[BlockShape]) -> float:
            recipe = recipe_of(self._arguments, self.space.head_dim, embed_dim, blocks)
            return measure(build(recipe, device=device))

        return BlockTable.measure(self.space, measure_blocks)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the weights of the whole supernet, or of a timm model of its largest size.

        Raises:
            ValueError: a weight has another shape.
        """
        for name, parameter in self.named_parameters():
            if name in state_dict and state_dict[name].shape != parameter.shape:
                raise ValueError(
                    f"{name} is {tuple(state_dict[name].shape)} in the checkpoint and "
                    f"{tuple(parameter.shape)} in the supernet. Make the supernet from a model of "
                    "the checkpoint's size; for another image or patch size convert it first, by "
                    "timm.models.vision_transformer.checkpoint_filter_fn(state_dict, model)"
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def set_input_size(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the active part would take the place of the whole."""
        raise RuntimeError("set the input size of the model before elastic_vit(model, …)")

    @property
    def cls_token(self) -> torch.Tensor | None:  # type: ignore[override]
        """Class token, active channels."""
        return self._channels("cls_token")

    @property
    def reg_token(self) -> torch.Tensor | None:  # type: ignore[override]
        """Register tokens, active channels."""
        return self._channels("reg_token")

    @property
    def pos_embed(self) -> torch.Tensor | None:  # type: ignore[override]
        """Position embedding, active channels."""
        return self._channels("pos_embed")

    @property
    def blocks(self) -> nn.Sequential:  # type: ignore[override]
        """The active blocks."""
        return cast(nn.Sequential, self._modules["blocks"])[: self._depth]

    def _channels(self, name: str) -> torch.Tensor | None:
        parameter = self._parameters.get(name)  # timm leaves out what a model does not have
        return None if parameter is None else parameter[..., : self._width]

    def _select(self, architecture: Architecture) -> None:
        embed_dim, shapes = self.space.shape(architecture)
        self._width, self._depth = embed_dim, len(shapes)
        embed: Any = self.patch_embed
        embed.proj.resize(embed_dim)
        resize_present([embed.norm, self.norm_pre, self.norm, self.fc_norm], embed_dim)
        if isinstance(self.head, nn.Linear):
            self.head.resize(embed_dim, self.num_classes)  # type: ignore[operator]
        for block, shape in zip(self.blocks, shapes, strict=True):
            resize_block(block, embed_dim, shape)

    def _recipe(self, architecture: Architecture) -> Recipe:
        return recipe_of(self._arguments, self.space.head_dim, *self.space.shape(architecture))

    def _rebuilt(self, architecture: Architecture, **rates: float) -> VisionTransformer:
        recipe = self._recipe(architecture)
        subnet = build(recipe, device="meta", weight_init="skip", **rates)
        return cast(VisionTransformer, subnet)

    def _table(self, measure: Measure, images: torch.Tensor) -> BlockTable:
        return self.subnet_table(
            lambda subnet: measure(subnet.to(images.dtype), images), images.device
        )


def _check_rebuilt(supernet: ElasticVisionTransformer) -> None:
    """Check that the constructor makes the parts of a model that may have been changed by hand."""
    rebuilt = _parts(build(supernet.describe(supernet.architecture), device="meta"))
    own = _parts(supernet)
    for name in [*own, *rebuilt]:
        one, other = own.get(name, "missing"), rebuilt.get(name, "missing")
        if one != other:
            raise TypeError(
                f"{name} is {one} in the model and {other} in one that timm builds with "
                "the same arguments; start from a VisionTransformer as its constructor makes it"
            )


def _parts(model: nn.Module) -> dict[str, Any]:
    """Return shapes of the weights, and the operations of the layers, by path."""
    operations = {name: operation(module) for name, module in model.named_modules()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return shapes | {name: what for name, what in operations.items() if what is not None}
