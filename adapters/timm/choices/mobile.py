"""`mobile_supernet`: choices of kernels, expansion, SE and activation for mobile models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
from timm.layers import get_act_layer
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv5 import MobileNetV5
from torch import nn

from nas_dynamic.adapters.timm.choices.choice import SKIP
from nas_dynamic.adapters.timm.choices.fusion import fuse_models
from nas_dynamic.adapters.timm.choices.layers import EXTRACTORS
from nas_dynamic.adapters.timm.choices.supernet import LayerChoiceSupernet
from nas_dynamic.adapters.timm.images import copy_data_config
from nas_dynamic.adapters.timm.recipe import Recipe, build, constructor_calls, to_json
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["mobile_supernet"]

ArchDef = Sequence[Sequence[str]]
Block = dict[str, Any]

MODEL_CLASSES = (*EXTRACTORS, *EXTRACTORS.values(), MobileNetV5)

_COMMON = {"expansion": "exp_ratio", "se": "se_ratio", "activation": "act_layer"}
ARGUMENTS = {
    "ir": {"kernel": "dw_kernel_size", **_COMMON},
    "er": {"kernel": "exp_kernel_size", **_COMMON},
    "uir": {"start_kernel": "dw_kernel_size_start", "kernel": "dw_kernel_size_mid", **_COMMON},
}
"""Types of blocks that become choices, those with an expansion: option → argument of the block."""

UNCHANGED = "keep"
"""The candidate that is the base's own layer, where only `skip` makes a choice."""

ACTIVATIONS = {"relu": "re", "relu6": "r6", "hard_swish": "hs", "swish": "sw", "mish": "mi"}
"""Activations by timm's name, and as an arch_def writes them."""


def mobile_supernet(
    base: str | ArchDef,
    *,
    kernel: Sequence[int] = (),
    start_kernel: Sequence[int] = (),
    expansion: Sequence[float] = (),
    se: Sequence[float] = (),
    activation: Sequence[str] = (),
    skip: bool | Collection[str] = False,
    model_class: type[nn.Module] = EfficientNet,
    **kwargs: Any,
) -> LayerChoiceSupernet:
    """Make a supernet of an EfficientNet, a MobileNetV3, V4 or V5, or a MnasNet.

    Every inverted residual (`ir`), edge residual (`er`) and universal inverted residual (`uir`,
    the UIB of MobileNetV4 and V5) becomes a choice of all combinations of what is given; what is
    not given stays as it is in `base`. Candidates are named as an arch_def writes them, such as
    "k3_e6" and "a3_k5_e4"; a point is written p, as in "se0p25". All other layers are shared.

    In `uir` both depthwise kernels may be absent, which is written 0 and gives the four kinds of
    that block: a3_k3 is ExtraDW, a3_k0 is like ConvNext, a0_k3 is the inverted bottleneck, a0_k0
    the FFN. A block with a stride cannot be an FFN, and has no such candidate.

    Args:
        base: a model name of timm, or an arch_def.
        kernel: sizes of the depthwise kernel: in `er` of the expanding one, in `uir` of the one
            after the expansion, where 0 is none.
        start_kernel: sizes of the depthwise kernel before the expansion, in `uir`; 0 for none.
        expansion: ratios of the expansion.
        se: ratios of squeeze-and-excitation, 0 for none.
        activation: names of activations: relu, relu6, hard_swish, swish, mish.
        skip: whether layers may be left out; see `fuse`.
        model_class: for an arch_def: EfficientNet, MobileNetV3 or MobileNetV5; or timm's
            `EfficientNetFeatures` or `MobileNetV3Features`, which return a list of feature maps.
        kwargs: arguments of `timm.create_model`, such as `features_only`; or of `model_class` for
            an arch_def.

    Returns:
        The supernet, which is also a model of timm's class. If the base is one of the subnets it
        starts as that, with its weights (as with `pretrained=True` or `checkpoint_path`).

    Raises:
        ValueError: the base is no such model, or the request is illegal.

    Source: of `uir`, Qin et al., "MobileNetV4: Universal Models for the Mobile Ecosystem", ECCV
        2024, arXiv 2404.10518.

    Example:
        >>> supernet = mobile_supernet("mobilenetv3_small_050", kernel=(3, 5), expansion=(3, 6))
        >>> supernet.space.choices["blocks.1.0"]
        ('k3_e3', 'k3_e6', 'k5_e3', 'k5_e6')
    """
    model, model_class, arguments = _built(base, model_class, kwargs)
    block_args: list[list[Block]] = arguments.pop("block_args")
    options = {
        "start_kernel": start_kernel,
        "kernel": kernel,
        "expansion": expansion,
        "se": se,
        "activation": activation,
    }
    _check_options(options, base, {block["block_type"] for row in block_args for block in row})
    recipes = MobileRecipes(model_class, arguments, _candidates(block_args, options))
    supernet = fuse_models(
        recipes.uniform_models(), recipes, skip=skip, offered=recipes.candidates.__getitem__
    )
    own = recipes.architecture_of(block_args, supernet.space)
    if own is not None:
        supernet.base = own
        supernet.activate(own)
        supernet.inherit(model)
    elif kwargs.get("pretrained") or kwargs.get("checkpoint_path"):
        raise ValueError(
            f"weights of {base!r} cannot be inherited: it is none of the subnets. Add its own "
            "kernels, expansions, SE ratios and activations to the choices, or leave them out"
        )
    copy_data_config(model, supernet)
    return supernet


@dataclass(frozen=True)
class MobileRecipes:
    """Recipes of subnets: one call of the constructor, with a block_args of their own.

    Attributes:
        model_class: one of `MODEL_CLASSES`.
        arguments: of its constructor, but for `block_args`.
        candidates: path of a layer → candidate → arguments of that block; of all layers, in
            their order.
    """

    model_class: type[nn.Module]
    arguments: Mapping[str, Any]
    candidates: Mapping[str, Mapping[str, Block]]

    def __call__(self, architecture: Architecture) -> Recipe:
        """Return the recipe of a subnet."""
        stages: dict[str, list[Block]] = {}
        for path, blocks in self.candidates.items():
            _, stage, _ = path.split(".")
            # Where there is no choice all candidates are alike.
            candidate = architecture.get(path, next(iter(blocks)))
            if candidate != SKIP:
                stages.setdefault(stage, []).append(blocks[str(candidate)])
        arguments = {"block_args": [*stages.values()], **self.arguments}
        return {"model": {**to_json(self.model_class), "with": to_json(arguments)}}

    def uniform_models(self) -> dict[str, nn.Module]:
        """Build, for every candidate, the model that has it in all layers that offer it."""
        names = dict.fromkeys(itertools.chain.from_iterable(self.candidates.values()))
        return {
            name: build(self({path: name for path, own in self.candidates.items() if name in own}))
            for name in names
        }

    def architecture_of(
        self, block_args: Sequence[Sequence[Block]], space: SearchSpace
    ) -> dict[str, Hashable] | None:
        """Return the architecture that has the given blocks, if there is one."""
        found: dict[str, Hashable] = {}
        for path, candidates in space.choices.items():
            _, stage, index = path.split(".")
            block = self._explicit(block_args[int(stage)][int(index)])
            blocks = self.candidates[path]
            alike = [c for c in candidates if c != SKIP and self._explicit(blocks[str(c)]) == block]
            if not alike:
                return None
            found[path] = alike[0]
        return found

    def _explicit(self, block: Block) -> Block:
        """Return a block with the activation that it has by default."""
        default = self.arguments.get("act_layer") or nn.ReLU
        return {**block, "act_layer": block["act_layer"] or default}


def _built(
    base: str | ArchDef, model_class: type[nn.Module], kwargs: Mapping[str, Any]
) -> tuple[nn.Module, type[nn.Module], dict[str, Any]]:
    """Build the base; return it with its class and the arguments of its constructor."""
    with constructor_calls(*MODEL_CLASSES) as calls:
        if isinstance(base, str):
            model = timm.create_model(base, **kwargs)
        elif model_class in MODEL_CLASSES:
            model = model_class(block_args=decode_arch_def([list(s) for s in base]), **kwargs)
        else:
            raise ValueError(
                f"model_class must be one of {', '.join(c.__name__ for c in MODEL_CLASSES)}, got "
                f"{model_class.__name__}"
            )
    if not calls:
        raise ValueError(
            f"{base!r} is a {type(model).__name__}; mobile_supernet() takes EfficientNet, "
            "MobileNetV3, V4, V5 and MnasNet models. Use fuse() for others"
        )
    cls, arguments = calls[-1]
    if type(model) is not cls:
        extractor, remedy = EXTRACTORS.get(cls), "use fuse()"
        if extractor is not None:
            remedy = (
                "leave feature_cls and feature_cfg out, so that timm builds "
                f"{extractor.__name__}, with the same features"
            )
        raise ValueError(
            f"{base!r} is a {type(model).__name__} around a {cls.__name__}, and has no block_args "
            f"of its own; {remedy}"
        )
    return model, cls, arguments


def _candidates(
    block_args: Sequence[Sequence[Block]], options: Mapping[str, Sequence[Any]]
) -> dict[str, dict[str, Block]]:
    """Return path of a layer → candidate → arguments of the block, all that timm can build."""
    return {
        f"blocks.{i}.{j}": _combinations(f"blocks.{i}.{j}", block, options, strided=j == 0)
        for i, blocks in enumerate(block_args)
        for j, block in enumerate(blocks)
    }


def _combinations(
    path: str, block: Block, options: Mapping[str, Sequence[Any]], strided: bool
) -> dict[str, Block]:
    kind = block["block_type"]
    arguments = {o: a for o, a in ARGUMENTS.get(kind, {}).items() if options[o]}
    found = {}
    for values in itertools.product(*(options[option] for option in arguments)):
        chosen = dict(zip(arguments, values, strict=True))
        changed = block | {
            argument: get_act_layer(chosen[option]) if option == "activation" else chosen[option]
            for option, argument in arguments.items()
        }
        # timm gives only the first block of a stage its stride.
        if _has_kernel(changed, strided and block["stride"] > 1):
            found["_".join(_token(*item) for item in chosen.items()) or UNCHANGED] = changed
    if not found:
        raise ValueError(
            f"layer {path!r}, of type {kind} and stride {block['stride']}, needs a kernel, and "
            "none is given that is not 0; add a size to kernel"
        )
    return found


def _has_kernel(block: Block, strided: bool) -> bool:
    """Tell whether a block has the depthwise kernels that it cannot do without."""
    if block["block_type"] == "uir":
        kernels = ("dw_kernel_size_start", "dw_kernel_size_mid", "dw_kernel_size_end")
        return not strided or any(block[kernel] for kernel in kernels)
    return block.get(ARGUMENTS.get(block["block_type"], {}).get("kernel", "")) != 0


def _token(option: str, value: Any) -> str:
    """Return a value of an option as an arch_def writes it."""
    if option == "activation":
        return f"n{ACTIVATIONS[value]}"
    prefix = {"start_kernel": "a", "kernel": "k", "expansion": "e", "se": "se"}[option]
    return f"{prefix}{value:g}".replace(".", "p")  # a name of a module cannot have a point


def _check_options(
    options: Mapping[str, Sequence[Any]], base: str | ArchDef, types: Collection[str]
) -> None:
    """Check the options against a base with blocks of some types."""
    if not types & ARGUMENTS.keys():
        raise ValueError(
            f"{base!r} has blocks of type {', '.join(sorted(types))} only; choices are made of "
            f"{', '.join(ARGUMENTS)}"
        )
    if options["start_kernel"] and "uir" not in types:
        raise ValueError(
            f"start_kernel is of uir blocks, the UIB of MobileNetV4 and V5, and {base!r} has none; "
            "leave it out"
        )
    none = "uir" in types
    odd: tuple[Callable[[Any], bool], str] = (
        lambda k: (none and k == 0) or (k > 0 and k % 2 == 1),
        "odd sizes, or 0 for none" if none else "odd sizes",
    )
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "start_kernel": odd,
        "kernel": odd,
        "expansion": (lambda e: e > 0, "positive ratios"),
        "se": (lambda r: 0 <= r <= 1, "ratios in [0, 1]"),
        "activation": (lambda a: a in ACTIVATIONS, f"names among {', '.join(ACTIVATIONS)}"),
    }
    for name, (holds, rule) in rules.items():
        values = options[name]
        if isinstance(values, str) or not all(map(holds, values)):
            raise ValueError(f"{name} must be a sequence of {rule}, got {values!r}")
