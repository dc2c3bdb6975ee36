"""`mobile_supernet`: choices of kernel, expansion, SE and activation for MBConv models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
from timm.layers import get_act_layer
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from nas_dynamic.adapters.timm.choices.choice import SKIP
from nas_dynamic.adapters.timm.choices.fusion import fuse_models
from nas_dynamic.adapters.timm.choices.supernet import LayerChoiceSupernet
from nas_dynamic.adapters.timm.images import copy_data_config
from nas_dynamic.adapters.timm.recipe import Recipe, build, constructor_calls, to_json
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["mobile_supernet"]

ArchDef = Sequence[Sequence[str]]
Block = dict[str, Any]

KERNEL_ARGUMENTS = {"ir": "dw_kernel_size", "er": "exp_kernel_size"}
"""Types of blocks that become choices, those with an expansion, and the argument of the kernel."""

UNCHANGED = "keep"
"""The candidate that is the base's own layer, where only `skip` makes a choice."""

ACTIVATIONS = {"relu": "re", "relu6": "r6", "hard_swish": "hs", "swish": "sw", "mish": "mi"}
"""Activations by timm's name, and as an arch_def writes them."""


def mobile_supernet(
    base: str | ArchDef,
    *,
    kernel: Sequence[int] = (),
    expansion: Sequence[float] = (),
    se: Sequence[float] = (),
    activation: Sequence[str] = (),
    skip: bool | Collection[str] = False,
    model_class: type[nn.Module] = EfficientNet,
    **kwargs: Any,
) -> LayerChoiceSupernet:
    """Make a supernet of an EfficientNet, MobileNetV3 or MnasNet.

    Every inverted residual (`ir`) and edge residual (`er`) becomes a choice of all combinations
    of what is given; what is not given stays as it is in `base`. Candidates are named as an
    arch_def writes them, such as "k3_e6"; a point is written p, as in "se0p25". All other layers
    are shared.

    Args:
        base: a model name of timm, or an arch_def.
        kernel: sizes of the depthwise kernel (of the expanding one in `er`).
        expansion: ratios of the expansion.
        se: ratios of squeeze-and-excitation, 0 for none.
        activation: names of activations: relu, relu6, hard_swish, swish, mish.
        skip: whether layers may be left out; see `fuse`.
        model_class: for an arch_def: EfficientNet or MobileNetV3.
        kwargs: arguments of `timm.create_model`; or of `model_class` for an arch_def.

    Returns:
        The supernet, which is also a model of timm's class. If the base is one of the subnets it
        starts as that, with its weights (as with `pretrained=True` or `checkpoint_path`).

    Raises:
        ValueError: the base is no such model, or the request is illegal.

    Example:
        >>> supernet = mobile_supernet("mobilenetv3_small_050", kernel=(3, 5), expansion=(3, 6))
        >>> supernet.space.choices["blocks.1.0"]
        ('k3_e3', 'k3_e6', 'k5_e3', 'k5_e6')
    """
    options = _checked_options(kernel, expansion, se, activation)
    model, recipes = _base_and_recipes(base, model_class, kwargs, _operations(options))
    supernet = fuse_models({n: recipes.uniform(n) for n in recipes.operations}, recipes, skip=skip)
    own = recipes.own_architecture(supernet.space)
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
        model_class: EfficientNet or MobileNetV3.
        arguments: of its constructor, but for `block_args`.
        block_args: of the base: arguments of the blocks, stage by stage.
        operations: candidate → what it sets in a block.
    """

    model_class: type[nn.Module]
    arguments: Mapping[str, Any]
    block_args: Sequence[Sequence[Block]]
    operations: Mapping[str, Mapping[str, Any]]

    def __call__(self, architecture: Architecture) -> Recipe:
        """Return the recipe of a subnet."""
        # Where there is no choice all operations are alike.
        first = next(iter(self.operations))
        return self._recipe(lambda path: str(architecture.get(path, first)))

    def uniform(self, operation: str) -> nn.Module:
        """Build the model that has one operation in all its layers."""
        return build(self._recipe(lambda path: operation))

    def own_architecture(self, space: SearchSpace) -> dict[str, Hashable] | None:
        """Return the architecture of the base, if it is one."""
        own = {}
        for path, candidates in space.choices.items():
            _, stage, index = path.split(".")
            block = self._explicit(self.block_args[int(stage)][int(index)])
            alike = [c for c in candidates if c != SKIP and self._changed(block, str(c)) == block]
            if not alike:
                return None
            own[path] = alike[0]
        return own

    def _recipe(self, candidate_of: Callable[[str], str]) -> Recipe:
        stages: list[list[Block]] = []
        for i, blocks in enumerate(self.block_args):
            stages.append([])
            for j, block in enumerate(blocks):
                candidate = candidate_of(f"blocks.{i}.{j}")
                if candidate != SKIP:
                    stages[-1].append(self._changed(block, candidate))
        arguments = {"block_args": stages, **self.arguments}
        return {"model": {**to_json(self.model_class), "with": to_json(arguments)}}

    def _changed(self, block: Block, candidate: str) -> Block:
        if block["block_type"] not in KERNEL_ARGUMENTS:
            return block
        operation = dict(self.operations[candidate])
        if "kernel" in operation:
            operation[KERNEL_ARGUMENTS[block["block_type"]]] = operation.pop("kernel")
        return {**block, **operation}

    def _explicit(self, block: Block) -> Block:
        """Return a block with the activation that it has by default."""
        default = self.arguments.get("act_layer") or nn.ReLU
        return {**block, "act_layer": block["act_layer"] or default}


def _base_and_recipes(
    base: str | ArchDef,
    model_class: type[nn.Module],
    kwargs: Mapping[str, Any],
    operations: Mapping[str, Mapping[str, Any]],
) -> tuple[nn.Module, MobileRecipes]:
    with constructor_calls(EfficientNet, MobileNetV3) as calls:
        if isinstance(base, str):
            model = timm.create_model(base, **kwargs)
        elif model_class in (EfficientNet, MobileNetV3):
            model = model_class(block_args=decode_arch_def([list(s) for s in base]), **kwargs)
        else:
            raise ValueError(
                f"model_class must be EfficientNet or MobileNetV3, got {model_class.__name__}"
            )
    if not calls:
        raise ValueError(
            f"{base!r} is a {type(model).__name__}; mobile_supernet() takes EfficientNet, "
            "MobileNetV3 and MnasNet models. Use fuse() for others"
        )
    cls, arguments = calls[-1]
    block_args = arguments.pop("block_args")
    types = {block["block_type"] for blocks in block_args for block in blocks}
    if not types & KERNEL_ARGUMENTS.keys():
        raise ValueError(
            f"{base!r} has blocks of type {', '.join(sorted(types))} only; choices are made of "
            f"{' and '.join(KERNEL_ARGUMENTS)}"
        )
    return model, MobileRecipes(cls, arguments, block_args, operations)


def _operations(options: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Return candidate → what it sets in a block, for all combinations of the options."""
    operations = {}
    for values in itertools.product(*options.values()):
        operation = dict(zip(options, values, strict=True))
        name = "_".join(_token(*item) for item in operation.items()) or UNCHANGED
        if "act_layer" in operation:
            operation["act_layer"] = get_act_layer(operation["act_layer"])
        operations[name] = operation
    return operations


def _token(option: str, value: Any) -> str:
    if option == "act_layer":
        return f"n{ACTIVATIONS[value]}"
    prefix = {"kernel": "k", "exp_ratio": "e", "se_ratio": "se"}[option]
    return f"{prefix}{value:g}".replace(".", "p")  # a name of a module cannot have a point


def _checked_options(
    kernel: Sequence[int],
    expansion: Sequence[float],
    se: Sequence[float],
    activation: Sequence[str],
) -> dict[str, Sequence[Any]]:
    """Check options; return those that are given, by their names in a block's arguments."""
    rules: list[tuple[str, str, Sequence[Any], Callable[[Any], bool], str]] = [
        ("kernel", "kernel", kernel, lambda k: k > 0 and k % 2 == 1, "odd sizes"),
        ("expansion", "exp_ratio", expansion, lambda e: e > 0, "positive ratios"),
        ("se", "se_ratio", se, lambda r: 0 <= r <= 1, "ratios in [0, 1]"),
        (
            "activation",
            "act_layer",
            activation,
            lambda a: a in ACTIVATIONS,
            f"names among {', '.join(ACTIVATIONS)}",
        ),
    ]
    options = {}
    for name, argument, values, holds, rule in rules:
        if isinstance(values, str) or not all(map(holds, values)):
            raise ValueError(f"{name} must be a sequence of {rule}, got {values!r}")
        if values:
            options[argument] = values
    return options
