"""What the layers of a timm model are, what shapes they map, and whether two of them are alike."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from timm.models._efficientnet_blocks import MobileAttention
from timm.models._features import FeatureGetterNet
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3, MobileNetV3Features
from torch import nn
from torch.fx import GraphModule

from nas_dynamic.adapters.timm.images import example_images

__all__ = [
    "EXTRACTORS",
    "Call",
    "differences",
    "hooked",
    "layer_calls",
    "layer_paths",
    "layer_shapes",
    "may_skip",
]

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class Call(NamedTuple):
    """One call of a layer in a forward pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor


EXTRACTORS: dict[Any, type[nn.Module]] = {
    EfficientNet: EfficientNetFeatures,
    MobileNetV3: MobileNetV3Features,
}
"""Models → their feature extractors that are no wrappers, and have the same layers."""

# Of pretrained weights and of feature extraction; and what decides about stochastic depth only.
_IGNORED = {"training", "pretrained_cfg", "default_cfg", "feature_info"}


def layer_paths(model: nn.Module, pattern: str | None = None) -> list[str]:
    """Return the paths of the layers of a model, in the order of its modules.

    Args:
        model: a timm model.
        pattern: regular expression that matches the whole path of a layer; by default timm's own
            division into layers, `model.group_matcher()`, as layer decay uses it.

    Raises:
        ValueError: the model has no `group_matcher` of expressions, nothing matches, or it is
            traced.
    """
    if any(isinstance(module, GraphModule) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} computes a traced graph, in which no layer can be replaced; "
            "take features by another feature_cls: 'list', 'dict' or 'getter'"
        )
    if pattern is not None:
        patterns = [re.compile(pattern)]
    elif isinstance(groups := _groups(model), Mapping):
        specs: list[Any] = []
        for spec in groups.values():
            specs += [part[0] for part in spec] if isinstance(spec, list | tuple) else [spec]
        # A part of a model that there is more than one of has its number in a group.
        patterns = [p for p in map(re.compile, filter(None, specs)) if p.groups]
    else:
        raise ValueError(
            f"{type(model).__name__} has no group_matcher that tells the paths of its layers; "
            r"give layers=, a regular expression of them such as r'blocks\.\d+'"
        )
    names = [name for name, _ in model.named_modules()]
    paths = [name for name in names if any(p.fullmatch(name) for p in patterns)]
    if not paths:
        raise ValueError(
            f"{type(model).__name__} has no layer that matches "
            f"{', '.join(repr(p.pattern) for p in patterns)}; give layers=, a regular expression "
            "of their paths"
        )
    return [p for p in paths if not any(other.startswith(p + ".") for other in paths)]


def _groups(model: Any) -> Any:
    """Return timm's division into layers: of some models a function of a path, of some none."""
    for plain, extractor in EXTRACTORS.items():
        if type(model) is extractor:
            return plain.group_matcher(model, coarse=False)
    return model.group_matcher(coarse=False) if hasattr(model, "group_matcher") else None


def layer_calls(
    model: nn.Module, paths: Collection[str], images: torch.Tensor
) -> dict[str, list[Call]]:
    """Return all calls of layers in one forward pass in evaluation mode, by path.

    Raises:
        ValueError: a layer does not map a tensor to a tensor, or is not called.
    """
    calls: dict[str, list[Call]] = {path: [] for path in paths}

    def record(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (args and torch.is_tensor(args[0]) and torch.is_tensor(output)):
            raise ValueError(
                f"layer {path!r} of {type(model).__name__} does not map a tensor to a tensor, so "
                "there is no choice of it. Give layers=, a regular expression of the paths of "
                "layers that do, if it has such"
            )
        calls[path].append(Call(args, kwargs, output))

    handles = [
        model.get_submodule(path).register_forward_hook(
            functools.partial(record, path), with_kwargs=True
        )
        for path in paths
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for path, own in calls.items():
        if not own:
            raise ValueError(
                f"layer {path!r} of {type(model).__name__} is not computed in its forward pass; "
                "give layers=, a regular expression of the paths of layers that are"
            )
    return calls


def layer_shapes(model: nn.Module, paths: Collection[str]) -> dict[str, Shapes]:
    """Return the shapes, without the batch, that layers map from and to; on the meta device."""
    shadow = copy.deepcopy(model).to("meta")
    first = {p: calls[0] for p, calls in layer_calls(shadow, paths, example_images(model)).items()}
    return {
        path: (tuple(call.args[0].shape[1:]), tuple(call.output.shape[1:]))
        for path, call in first.items()
    }


def may_skip(model: nn.Module, path: str, shapes: Shapes) -> str | None:
    """Return why a layer cannot be left out; None if it can."""
    parent, _, index = path.rpartition(".")
    stage = model.get_submodule(parent)
    if not isinstance(stage, nn.Sequential):
        return "is no element of an nn.Sequential"
    if index == "0":
        return "is the first layer of its stage, which timm cannot build without one"
    if shapes[0] != shapes[1]:
        return f"maps {described(shapes)}, so what comes after it needs it"
    features = {entry.get("module") for entry in getattr(model, "feature_info", None) or ()}
    if any(map(hooked, stage)) or _counted(model, parent, features):
        return "is of the layers by whose number timm finds features, which would be other ones"
    attention = any(isinstance(layer, MobileAttention) for layer in stage)
    if attention and parent in features and int(index) == len(stage) - 1:
        return "ends a stage with attention, which timm cannot build when attention is its end"
    return None


def hooked(module: nn.Module) -> bool:
    """Tell whether a module, or a part of it, has hooks, as of timm's feature extractors."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _counted(model: nn.Module, parent: str, features: Collection[str | None]) -> bool:
    """Tell whether features are taken from the layers of a parent by their number."""
    inside = parent.removeprefix("model.")
    layers = model.get_submodule(parent).named_children()
    return isinstance(model, FeatureGetterNet) and any(
        f"{inside}.{n}" in features for n, _ in layers
    )


def described(shapes: Shapes) -> str:
    """Return shapes in words, such as 16×112×112 to 24×56×56."""
    return " to ".join("×".join(map(str, shape)) for shape in shapes)


def differences(
    models: Mapping[str, nn.Module], without: Mapping[str, Collection[str]] | None = None
) -> list[str]:
    """Return where modules are not alike, one sentence each.

    Modules are alike if they are of one class with equal hyperparameters and shapes, and so are
    their children. Values of weights do not count, nor does stochastic depth.

    Args:
        models: name → module.
        without: name → paths that do not count.
    """
    first, *others = models
    signatures = {
        name: _signatures(model, frozenset((without or {}).get(name, ())))
        for name, model in models.items()
    }
    found = []
    for name in others:
        here, there = signatures[first], signatures[name]
        for path in [*here, *(path for path in there if path not in here)]:
            if here.get(path) != there.get(path):
                one, other = (
                    _shown(models[key], path, path in signature)
                    for key, signature in ((first, here), (name, there))
                )
                if one == other:
                    one, other = _differing(here[path], there[path])
                found.append(f"{path or 'the model'} is {one} in {first!r} and {other} in {name!r}")
    return found


def _signatures(module: nn.Module, without: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Return what a module is made of: path → class, hyperparameters, shapes."""
    own = {
        name: _plain(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _IGNORED and value is not None
    }
    tensors = {
        name: (tuple(tensor.shape), tensor.dtype)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }
    found: dict[str, Any] = {prefix: {"class": type(module), **own, **tensors}}
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if path not in without and not isinstance(child, nn.Identity | DropPath):
            found |= _signatures(child, without, path)
    return found


def _plain(value: Any) -> Any:
    """Return what compares by value for a hyperparameter; objects compare by their class."""
    if isinstance(value, bool | int | float | str | type) or value is None:
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return (value.func, _plain(value.args), _plain(value.keywords))
    return value if callable(value) and hasattr(value, "__qualname__") else type(value)


def _differing(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[str, str]:
    """Return the attributes of two signatures that are not equal, in words."""
    keys = [k for k in {**here, **there} if here.get(k) != there.get(k)]
    shown = (", ".join(f"{k}={sig.get(k)}" for k in keys) for sig in (here, there))
    return f"of {next(shown)}", f"of {next(shown)}"


def _shown(model: nn.Module, path: str, exists: bool) -> str:
    if not exists:
        return "absent"
    module = model.get_submodule(path)
    lines = repr(module).splitlines()
    return lines[0] if len(lines) == 1 else type(module).__name__
