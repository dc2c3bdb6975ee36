"""Supernets of timm models: a model of which some layers are a choice of layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from nas_dynamic.adapters.timm.choices.choice import SKIP, LayerChoice
from nas_dynamic.adapters.timm.choices.layers import Call, layer_calls
from nas_dynamic.adapters.timm.choices.weights import check_weights, crop_into
from nas_dynamic.adapters.timm.recipe import Recipe, build, remove_layers
from nas_dynamic.adapters.timm.supernet import Measure, Supernet
from nas_dynamic.complexity import AdditiveTable
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["LayerChoiceSupernet", "make_supernet"]


class LayerChoiceSupernet(Supernet):
    """A supernet some of whose layers are choices of layers; made by `fuse`, `mobile_supernet`.

    Labels of the space are paths of layers, such as `blocks.1.0`.

    Attributes:
        timm_class: the class of the extracted models.
    """

    timm_class: type[nn.Module]
    _recipe_of: Callable[[Architecture], Recipe] | None

    def choices(self) -> dict[str, LayerChoice]:
        """Return the layer choices by label, in the order of the space."""
        return {label: cast(LayerChoice, self.get_submodule(label)) for label in self.space.labels}

    @property
    def layer_labels(self) -> dict[str, tuple[str, ...]]:
        """See `Supernet.layer_labels`; with the stem, and layers that are no choice."""
        # Paths of layers that are no choice differ from those that are in numbers only.
        like_choices = re.compile(
            "|".join({re.sub(r"\d+", r"\\d+", re.escape(label)) for label in self.space.labels})
        )
        stem = (getattr(self, "pretrained_cfg", None) or {}).get("first_conv")
        paths = [path for path, _ in self.named_modules() if like_choices.fullmatch(path)]
        # A feature extractor may have its stem by another name.
        modules = dict(self.named_modules())
        layers: dict[str, tuple[str, ...]] = {path: () for path in modules if path == stem}
        return layers | {path: (path,) if path in self.space.choices else () for path in paths}

    def inherit(
        self,
        weights: nn.Module | Mapping[str, torch.Tensor],
        architecture: Architecture | None = None,
        *,
        crop: bool = False,
    ) -> None:
        """Give one subnet the weights of a stand-alone model, so that it is that model exactly.

        Args:
            weights: the model, or its state_dict.
            architecture: the subnet; `base` by default.
            crop: also start the other candidates of every layer from the weights of the given
                one: kernels cropped or padded with zeros around their centre, and of channels
                the first ones. A larger kernel then computes just what the given one does.

        Raises:
            ValueError: the weights are of another model than the subnet.
        """
        architecture = self.base if architecture is None else architecture
        self.space.validate(architecture)
        state = weights.state_dict() if isinstance(weights, nn.Module) else weights
        own = self._weights(architecture)
        check_weights(own, state, architecture)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
        if not crop:
            return
        for label, choice in self.choices().items():
            given = choice[str(architecture[label])]
            for candidate in choice.values():
                if candidate is not given:
                    crop_into(given.state_dict(), candidate.state_dict())

    def subnet_parameters(self) -> AdditiveTable:
        """Return architecture → number of parameters of the stand-alone subnet; exact."""
        constant = 0.0
        terms: dict[str, dict[Hashable, float]] = {
            label: dict.fromkeys(choice, 0.0) for label, choice in self.choices().items()
        }
        shared: dict[frozenset[tuple[str, Hashable]], float] = {}
        for parameter, users in self._users().items():
            size = parameter.numel() if parameter.requires_grad else 0
            if None in users:
                constant += size
            elif len({label for label, _ in users}) == 1:
                for label, candidate in users:
                    terms[label][candidate] += size
            else:
                shared[frozenset(users)] = shared.get(frozenset(users), 0.0) + size
        return AdditiveTable(constant, terms, [(size, users) for users, size in shared.items()])

    def plain_copy(self) -> nn.Module:
        """Return a copy that is a plain model of `timm_class`, whose layers are still choices."""
        model: Any = copy.deepcopy(self)
        for cls in (Supernet, LayerChoiceSupernet):
            for attribute in cls.__annotations__:
                vars(model).pop(attribute, None)
        model._forward_pre_hooks.clear()  # the one that draws subnets is the supernet's
        model.__class__ = self.timm_class
        return cast(nn.Module, model)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class of a supernet has no importable name.
        return _empty_supernet, (self.timm_class,), self.__getstate__()

    def _users(self) -> dict[nn.Parameter, set[Any]]:
        """Return parameter → (label, candidate) of all that use it; None for what is no choice."""
        users: dict[nn.Parameter, set[Any]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            label = next((label for label in self.space.labels if name.startswith(f"{label}.")), "")
            candidate = name.removeprefix(f"{label}.").partition(".")[0]
            users.setdefault(parameter, set()).add((label, candidate) if label else None)
        return users

    def _select(self, architecture: Architecture) -> None:
        for label, choice in self.choices().items():
            choice.active = str(architecture[label])

    def _weights(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        skipped = {label for label, candidate in architecture.items() if candidate == SKIP}
        parents = {label.rpartition(".")[0] for label in skipped}
        weights = {}
        for name, tensor in self.state_dict().items():
            label = next((label for label in architecture if name.startswith(f"{label}.")), None)
            if label is not None:
                candidate, _, rest = name.removeprefix(f"{label}.").partition(".")
                if candidate != architecture[label]:
                    continue
                name = f"{label}.{rest}"
            for parent in parents:
                if name.startswith(f"{parent}."):
                    index, _, rest = name.removeprefix(f"{parent}.").partition(".")
                    # What comes after a layer that is left out moves up.
                    moved = sum(f"{parent}.{i}" in skipped for i in range(int(index)))
                    name = f"{parent}.{int(index) - moved}.{rest}"
                    break
            weights[name] = tensor
        return weights

    def _recipe(self, architecture: Architecture) -> Recipe:
        if self._recipe_of is None:
            raise ValueError(
                "the supernet was made from model objects, which do not tell how they were built; "
                "give fuse() names or arguments of timm.create_model instead"
            )
        return self._recipe_of(architecture)

    def _rebuilt(self, architecture: Architecture) -> nn.Module:
        if self._recipe_of is None:
            return self._dissected(architecture)
        reference = next(self.parameters())
        return build(self._recipe_of(architecture)).to(reference.device, reference.dtype)

    def _dissected(self, architecture: Architecture) -> nn.Module:
        """Return a copy of the supernet without all that is not of a subnet."""
        subnet = self.plain_copy()
        for label in self.space.labels:
            if architecture[label] != SKIP:
                path = f"{label}.{architecture[label]}"
                subnet.set_submodule(label, subnet.get_submodule(path))
        remove_layers(subnet, [label for label in architecture if architecture[label] == SKIP])
        return subnet

    def _table(self, measure: Measure, images: torch.Tensor) -> AdditiveTable:
        model = copy.deepcopy(self).to("meta") if images.is_meta else self
        choices = model.choices()
        calls = layer_calls(model, choices, images)
        terms: dict[str, dict[Hashable, float]] = {
            label: {
                name: 0.0 if name == SKIP else _measured(measure, layer, calls[label])
                for name, layer in choice.items()
            }
            for label, choice in choices.items()
        }
        chosen = sum(terms[label][name] for label, name in self.architecture.items())
        return AdditiveTable(measure(model, images) - chosen, terms)


class _Call(nn.Module):
    """A layer with the arguments, beside the first, that the model calls it with."""

    def __init__(self, layer: nn.Module, call: Call) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x, *self.call.args[1:], **self.call.kwargs)


def _measured(measure: Measure, layer: nn.Module, calls: Sequence[Call]) -> float:
    """Return the measure of a layer in the place of another one, as often as that is called."""
    return sum(measure(_Call(layer, call), call.args[0]) for call in calls)


def make_supernet(
    model: nn.Module,
    choices: Mapping[str, Mapping[str, nn.Module]],
    base: Mapping[str, Hashable],
    recipe_of: Callable[[Architecture], Recipe] | None,
) -> LayerChoiceSupernet:
    """Turn a model into a supernet, in place.

    Args:
        model: an instance of a timm model.
        choices: path of a layer → candidates by name; a `Skip` is named "skip".
        base: the subnet to start with.
        recipe_of: architecture → how timm builds it, if that is known.
    """
    timm_class = type(model)
    for path, candidates in choices.items():
        model.set_submodule(path, LayerChoice(candidates))
    model.__class__ = _supernet_class(timm_class)
    assert isinstance(model, LayerChoiceSupernet)
    model.space = SearchSpace({path: list(candidates) for path, candidates in choices.items()})
    model.base = dict(base)
    model.timm_class = timm_class
    model._recipe_of = recipe_of
    model.activate(base)
    return model


_classes: dict[type[nn.Module], type[LayerChoiceSupernet]] = {}


def _supernet_class(timm_class: type[nn.Module]) -> type[LayerChoiceSupernet]:
    if timm_class not in _classes:
        name = f"{timm_class.__name__}Supernet"
        bases = (LayerChoiceSupernet, timm_class)
        _classes[timm_class] = type(name, bases, {"__module__": __name__})
    return _classes[timm_class]


def _empty_supernet(timm_class: type[nn.Module]) -> LayerChoiceSupernet:
    cls = _supernet_class(timm_class)
    return cls.__new__(cls)
