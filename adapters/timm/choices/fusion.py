"""`fuse`: several models of one shape become a supernet; where they differ, a choice remains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import nn

from nas_dynamic.adapters.timm.choices.choice import SKIP, Skip
from nas_dynamic.adapters.timm.choices.features import extracted_models, layers_inside
from nas_dynamic.adapters.timm.choices.layers import (
    Shapes,
    described,
    differences,
    hooked,
    layer_paths,
    layer_shapes,
    may_skip,
)
from nas_dynamic.adapters.timm.choices.supernet import LayerChoiceSupernet, make_supernet
from nas_dynamic.adapters.timm.recipe import Recipe, to_json
from nas_dynamic.space import Architecture

__all__ = ["fuse", "fuse_models"]

ModelArguments = str | Mapping[str, Any]

DEPTH_ARGUMENTS: dict[type, str] = {ResNet: "layers", ConvNeXt: "depths"}
"""Model classes whose constructor takes the number of layers of each stage, and the argument."""


def fuse(
    models: Mapping[str, ModelArguments] | Mapping[str, nn.Module] | ModelArguments,
    *,
    skip: bool | Collection[str] = False,
    layers: str | None = None,
    **kwargs: Any,
) -> LayerChoiceSupernet:
    """Make a supernet of timm models that differ in some of their layers.

    A layer that is not the same in all models becomes a choice, whose candidates have the names
    of the models; layers that are the same, and everything outside of layers, are shared. A
    layer that some models do not have may be left out, as the candidate "skip". What a layer is,
    timm says itself: a block, by the model's `group_matcher`.

    Args:
        models: name → model name or arguments of `timm.create_model`; or name → model that you
            built; or a single model name or set of arguments, where `skip` makes all the choices.
        skip: also let layers be left out: True for all that can, or paths of layers. Those can
            that keep the shape and are not the first of their stage.
        layers: regular expression of the paths of layers, for models without `group_matcher`.
        kwargs: arguments of `timm.create_model` for all models, such as `num_classes`, or
            `features_only` for a supernet that returns feature maps.

    Returns:
        The supernet, which is also a model of timm's class. It starts as the first of the models,
        and with its weights where they are pretrained.

    Raises:
        ValueError: the models differ in more than the operations of layers, or in nothing.

    Example:
        >>> supernet = fuse({"plain": "resnet18", "se": "seresnet18"}, skip=True, num_classes=10)
        >>> supernet.space.choices["layer1.1"]
        ('plain', 'se', 'skip')
        >>> type(supernet.extract(supernet.architecture)).__name__
        'ResNet'
    """
    given: Mapping[str, Any] = models if isinstance(models, Mapping) else {"keep": models}
    if "model_name" in given:
        given = {"keep": given}
    if not given:
        raise ValueError("fuse() needs at least one model, got none")
    for name in given:
        if not name or "." in name or name == SKIP or hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f"{name!r} cannot name a model, for the name becomes that of candidates; take "
                "another one, without points"
            )
    if all(isinstance(model, nn.Module) for model in given.values()):
        if kwargs:
            raise ValueError(
                f"{', '.join(kwargs)}: arguments of timm.create_model have no effect on models "
                "that are built already; give them where you build the models"
            )
        # A copy each: the models stay as they are.
        built = {name: copy.deepcopy(model) for name, model in given.items()}
        return fuse_models(built, None, skip=skip, layers=layers)
    arguments = {name: _arguments(model) | kwargs for name, model in given.items()}
    for name, each in arguments.items():
        to_json(each, name)  # what a recipe cannot hold is refused now, not after the training
    with extracted_models() as extracted:
        built = {name: timm.create_model(**each) for name, each in arguments.items()}
    layers = layers or layers_inside(extracted)
    for each in arguments.values():
        for source in ("pretrained", "checkpoint_path"):
            each.pop(source, None)  # an extracted model has the weights of the supernet
    return fuse_models(built, Replacements.of(built, arguments, layers), skip=skip, layers=layers)


def fuse_models(
    models: Mapping[str, nn.Module],
    recipe: Callable[[Architecture], Recipe] | None,
    *,
    skip: bool | Collection[str] = False,
    layers: str | None = None,
    offered: Callable[[str], Collection[str]] | None = None,
) -> LayerChoiceSupernet:
    """Fuse models that are built, and become parts of the supernet; see `fuse`.

    Args:
        models: name → model.
        recipe: architecture → how timm builds it, if that is known.
        skip: as for `fuse`.
        layers: as for `fuse`.
        offered: path of a layer → names of the models whose layer is a candidate; all of them by
            default.
    """
    paths = {name: layer_paths(model, layers) for name, model in models.items()}
    host_name = _host(models, layers)
    host = models[host_name]
    outside = differences(models, paths)
    if outside:
        raise ValueError(
            f"the models differ in more than layers: {_listed(outside)}. Build them with the same "
            "widths, stem and head, or tell what a layer is by layers=, a regular expression"
        )
    for name in models:
        beyond = [path for path in paths[name] if path not in paths[host_name]]
        if beyond:
            raise ValueError(
                f"{name!r} has layers that {host_name!r}, the model with the most layers, lacks: "
                f"{_listed(beyond)}. Add a model that has the layers of all"
            )
    shapes = {name: layer_shapes(model, paths[name]) for name, model in models.items()}
    skipped = _skipped(host, shapes[host_name], skip)
    first = next(iter(models))
    choices: dict[str, dict[str, nn.Module]] = {}
    base: dict[str, str] = {}
    for path in paths[host_name]:
        having = {name: model for name, model in models.items() if path in paths[name]}
        if len(having) < len(models):
            _check_skip(host, path, shapes[host_name][path])
        _check_shapes(path, {name: shapes[name][path] for name in having})
        names = [name for name in (offered(path) if offered else having) if name in having]
        candidates = _distinct({name: having[name].get_submodule(path) for name in names})
        options = {name: module for name, (module, _) in candidates.items()}
        alike = [name for name, (_, users) in candidates.items() if first in users]
        chosen = SKIP if first not in having else (alike or list(options))[0]
        if len(having) < len(models) or path in skipped:
            options[SKIP] = Skip()
        if len(options) > 1:
            _check_replaceable(host, path)
            choices[path], base[path] = options, chosen
    if not choices:
        able, remedy = "", ", or skip=True"
        if skip:
            last = paths[host_name][-1]
            reason = may_skip(host, last, shapes[host_name][last])
            able, remedy = f", none of which can be left out: {last!r} {reason}", ""
        raise ValueError(
            f"there is nothing to choose: {', '.join(map(repr, models))} differ in none of the "
            f"{len(paths[host_name])} layers{able}. Give models that do{remedy}"
        )
    supernet = make_supernet(host, choices, base, recipe)
    if first != host_name:
        supernet.inherit(models[first])
    return supernet


@dataclass(frozen=True)
class Replacements:
    """Recipes of subnets: one model, with layers of the others, and without some.

    Attributes:
        host: name of the model that has all layers.
        arguments: name of a model → its arguments of `timm.create_model`.
        depth: the host's argument for the numbers of layers, if it has one.
        stages: parent of layers → the host's number of them, in the order of that argument.
    """

    host: str
    arguments: Mapping[str, Mapping[str, Any]]
    depth: str | None
    stages: Mapping[str, int]

    @classmethod
    def of(
        cls,
        models: Mapping[str, nn.Module],
        arguments: Mapping[str, Mapping[str, Any]],
        layers: str | None,
    ) -> Replacements:
        """Return the recipes for a supernet of some models."""
        host = _host(models, layers)
        depth = DEPTH_ARGUMENTS.get(type(models[host]))
        stages: dict[str, int] = {}
        # All stages that the argument counts, whichever of them have layers of the caller's.
        for path in layer_paths(models[host]) if depth else ():
            parent = path.rpartition(".")[0]
            if isinstance(models[host].get_submodule(parent), nn.Sequential):
                stages[parent] = stages.get(parent, 0) + 1
        return cls(host, arguments, depth, stages)

    def __call__(self, architecture: Architecture) -> Recipe:
        """Return the recipe of a subnet."""
        skipped = [path for path, candidate in architecture.items() if candidate == SKIP]
        replaced = {p: str(c) for p, c in architecture.items() if c not in (SKIP, self.host)}
        parents = [path.rpartition(".")[0] for path in skipped]
        if skipped and not replaced and self.depth and all(p in self.stages for p in parents):
            depths = {parent: n - parents.count(parent) for parent, n in self.stages.items()}
            return _create_model({**self.arguments[self.host], self.depth: [*depths.values()]})
        recipe = _create_model(self.arguments[self.host])
        if replaced:
            recipe["replace"] = {
                path: _create_model(self.arguments[name]) for path, name in replaced.items()
            }
        if skipped:
            recipe["remove"] = skipped
        return recipe


def _arguments(model: ModelArguments) -> dict[str, Any]:
    arguments = {"model_name": model} if isinstance(model, str) else model
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("model_name"), str):
        raise ValueError(
            "a model is given by its name, by the arguments of timm.create_model with a "
            f"'model_name', or as a module, all in the same way; got a {type(model).__name__}"
        )
    return dict(arguments)


def _create_model(arguments: Mapping[str, Any]) -> Recipe:
    return {"model": {"name": "timm.create_model", "with": to_json(arguments)}}


def _host(models: Mapping[str, nn.Module], layers: str | None) -> str:
    """Return the name of the model with most layers."""
    return max(models, key=lambda name: len(layer_paths(models[name], layers)))


def _distinct(modules: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, list[str]]]:
    """Return unlike modules, by the name of the first of each kind, with the names of all of it."""
    found: dict[str, tuple[nn.Module, list[str]]] = {}
    for name, module in modules.items():
        for kind, (known, names) in found.items():
            if not differences({kind: known, name: module}):
                names.append(name)
                break
        else:
            found[name] = module, [name]
    return found


def _skipped(
    model: nn.Module, shapes: Mapping[str, Shapes], skip: bool | Collection[str]
) -> set[str]:
    """Return the layers to offer to leave out."""
    able = {path: may_skip(model, path, shapes[path]) for path in shapes}
    if isinstance(skip, bool):
        return {path for path, reason in able.items() if skip and reason is None}
    if isinstance(skip, str):
        raise ValueError(f"skip must be a bool or a collection of paths, got {skip!r}")
    for path in skip:
        if path not in able:
            raise ValueError(
                f"skip names {path!r}, which is no layer; layers are {_listed([*able])}"
            )
        if able[path] is not None:
            possible = [path for path, reason in able.items() if reason is None]
            raise ValueError(
                f"layer {path!r} cannot be left out: it {able[path]}. Layers that can: "
                f"{_listed(possible) or 'none'}"
            )
    return set(skip)


def _check_skip(model: nn.Module, path: str, shapes: Shapes) -> None:
    reason = may_skip(model, path, shapes)
    if reason is not None:
        raise ValueError(
            f"some of the models lack layer {path!r}, but it cannot be left out: it {reason}. "
            "Give models that have it"
        )


def _check_replaceable(model: nn.Module, path: str) -> None:
    """Check that a choice in the place of a layer is all that the model needs to compute it."""
    layer = model.get_submodule(path)
    if hooked(layer):
        raise ValueError(
            f"layer {path!r} has a hook, as features are taken from inside of it, which other "
            "candidates have not. Take features from outputs of stages: by feature_cls='list' or "
            "'getter', or by feature_location='bottleneck'"
        )
    modules = model.named_modules(remove_duplicate=False)
    places = [place for place, module in modules if module is layer]
    if len(places) > 1:
        raise ValueError(
            f"layer {path!r} is used in more than one place: {_listed(places)}. A choice needs a "
            "layer of its own; build the models with copies"
        )


def _check_shapes(path: str, shapes: Mapping[str, Shapes]) -> None:
    first, *others = shapes
    for name in others:
        if shapes[name] != shapes[first]:
            raise ValueError(
                f"layer {path!r} maps {described(shapes[first])} in {first!r} and "
                f"{described(shapes[name])} in {name!r}; candidates of a layer must agree in "
                "both. Build the models with the same widths and strides"
            )


def _listed(items: list[str], limit: int = 4) -> str:
    more = f", … ({len(items)} in all)" if len(items) > limit else ""
    return "; ".join(items[:limit]) + more
