"""Supernets of timm models: a model of which some layers are a choice of layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NoReturn, cast

import torch
from torch import nn

from nas_dynamic.adapters.timm.choices.choice import SKIP, LayerChoice
from nas_dynamic.adapters.timm.choices.layers import copy_data_config, example_images, layer_inputs
from nas_dynamic.adapters.timm.choices.recipe import Recipe, build, remove_layers
from nas_dynamic.adapters.timm.choices.weights import check_weights, crop_into
from nas_dynamic.complexity import AdditiveTable, count_macs, count_parameters, measure_latency
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Supernet", "make_supernet"]


class Supernet:
    """What a timm model is beside itself when some of its layers are choices.

    A supernet is of a subclass of the model's own class, so that timm's tools treat it as the
    model that it is: optimizers with layer decay, EMA, checkpoints, feature extraction. Labels of
    the space are paths of layers, such as `blocks.1.0`.
    """

    space: SearchSpace
    base: dict[str, Hashable]
    """The subnet that is the model which the supernet was made from: see `inherit`."""
    timm_class: type[nn.Module]
    """The class of the extracted models."""
    _architecture: dict[str, Hashable]
    _recipe: Callable[[Architecture], Recipe] | None

    @property
    def architecture(self) -> dict[str, Hashable]:
        """The subnet that was activated last.

        ReportFigure a subnet for a step of training (`attach`) is no activation: in evaluation mode
        the supernet computes this one.
        """
        return dict(self._architecture)

    def activate(self, architecture: Architecture) -> None:
        """Make the supernet compute one subnet.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        self._architecture = dict(architecture)
        self._select(architecture)

    def choices(self) -> dict[str, LayerChoice]:
        """The layer choices by label, in the order of the space."""
        return {
            label: cast("LayerChoice", self._module.get_submodule(label))
            for label in self.space.labels
        }

    @property
    def layer_labels(self) -> dict[str, tuple[str, ...]]:
        """Layers in the order in which they compute, and the label that decides each, if any.

        For `nas_dynamic.evaluation.score_subnets`, which computes once what subnets share.
        """
        # Paths of layers that are no choice differ from those that are in numbers only.
        like_choices = re.compile(
            "|".join({re.sub(r"\d+", r"\\d+", re.escape(label)) for label in self.space.labels})
        )
        stem = (getattr(self, "pretrained_cfg", None) or {}).get("first_conv")
        paths = [path for path, _ in self._module.named_modules() if like_choices.fullmatch(path)]
        layers: dict[str, tuple[str, ...]] = {stem: ()} if isinstance(stem, str) else {}
        return layers | {path: (path,) if path in self.space.choices else () for path in paths}

    def extract(self, architecture: Architecture) -> nn.Module:
        """A stand-alone model of the subnet, with a copy of its weights.

        timm's own constructor builds it, and its weights are loaded strictly. It has the mode of
        the supernet and lies on the same device.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        if self._recipe is None:
            return self._dissected(architecture)
        reference = next(self._module.parameters())
        model = build(self._recipe(architecture)).to(reference.device, reference.dtype)
        # Clones keep the memory format, which decides the kernels and so the last bit.
        weights = {name: tensor.clone() for name, tensor in self._weights(architecture).items()}
        model.load_state_dict(weights, strict=True, assign=True)
        copy_data_config(self._module, model)
        return model.train(self._module.training)

    def describe(self, architecture: Architecture) -> Recipe:
        """Return how timm builds the subnet, as JSON values; see `choices.recipe`.

        Raises:
            ValueError: it is no architecture of the space; or the supernet was made from model
                objects, which do not tell how they were built.
        """
        self.space.validate(architecture)
        if self._recipe is None:
            raise ValueError(
                "the supernet was made from model objects, which do not tell how they were built; "
                "give fuse() names or arguments of timm.create_model instead"
            )
        return self._recipe(architecture)

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
        """architecture → number of parameters of the stand-alone subnet, by a table, exact."""
        terms: dict[str, dict[Hashable, float]] = {
            label: {name: count_parameters(layer) for name, layer in choice.items()}
            for label, choice in self.choices().items()
        }
        in_choices = sum(sum(term.values()) for term in terms.values())
        return AdditiveTable(count_parameters(self._module) - in_choices, terms)

    def subnet_macs(self, img_size: int | tuple[int, int] | None = None) -> AdditiveTable:
        """architecture → multiply-accumulates for one image, by a table, exact.

        Args:
            img_size: height and width in pixels; those that the model is for by default.
        """
        shadow = copy.deepcopy(self)._module.to("meta")
        return _measured_table(shadow, example_images(shadow, img_size), count_macs)

    def subnet_latency(self, images: torch.Tensor, *, seconds: float = 0.2) -> AdditiveTable:
        """architecture → milliseconds for a batch of images, by a table of measured layers.

        Layers that are measured alone do not add up to a model exactly: `AdditiveTable.errors`
        tells by how much they fail. `save` keeps the table, since measuring takes long.

        Args:
            images: the batch, on the device of the supernet.
            seconds: time to measure each candidate for.
        """

        def measure(module: nn.Module, x: torch.Tensor) -> float:
            return measure_latency(module, x, seconds=seconds)

        return _measured_table(self._module, images, measure)

    def reset_classifier(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: timm would build the subnets with the classifier that the supernet had."""
        raise RuntimeError(
            "give num_classes where you make the supernet, or reset the classifier of an "
            "extracted subnet"
        )

    @property
    def _module(self) -> nn.Module:
        assert isinstance(self, nn.Module)
        return self

    def _select(self, architecture: Architecture) -> None:
        for label, choice in self.choices().items():
            choice.active = str(architecture[label])

    def _weights(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        """Parameters and buffers of a subnet, by their names in the stand-alone model."""
        skipped: dict[str, list[int]] = {}
        for label in self.space.labels:
            if architecture[label] == SKIP:
                parent, _, index = label.rpartition(".")
                skipped.setdefault(parent, []).append(int(index))
        prefixes = {f"{label}.": f"{label}.{architecture[label]}." for label in self.space.labels}
        weights = {}
        for name, tensor in self._module.state_dict().items():
            prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
            if prefix is not None:
                if not name.startswith(prefixes[prefix]):
                    continue
                name = prefix + name.removeprefix(prefixes[prefix])
            for parent, indices in skipped.items():
                if name.startswith(f"{parent}."):
                    index, _, rest = name.removeprefix(f"{parent}.").partition(".")
                    # What comes after a layer that is left out moves up.
                    moved = int(index) - sum(i < int(index) for i in indices)
                    name = f"{parent}.{moved}.{rest}"
                    break
            weights[name] = tensor
        return weights

    def _dissected(self, architecture: Architecture) -> nn.Module:
        """The subnet as a copy of the supernet without all that is not of it."""
        subnet: Any = copy.deepcopy(self._module)
        for attribute in Supernet.__annotations__:
            vars(subnet).pop(attribute, None)
        subnet._forward_pre_hooks.clear()  # the one that draws subnets is the supernet's
        subnet.__class__ = self.timm_class
        for label in self.space.labels:
            if architecture[label] != SKIP:
                path = f"{label}.{architecture[label]}"
                subnet.set_submodule(label, subnet.get_submodule(path))
        remove_layers(subnet, [label for label in architecture if architecture[label] == SKIP])
        return subnet

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class of a supernet has no importable name.
        return _empty_supernet, (self.timm_class,), self.__dict__


def make_supernet(
    model: nn.Module,
    choices: Mapping[str, Mapping[str, nn.Module]],
    base: Mapping[str, Hashable],
    recipe: Callable[[Architecture], Recipe] | None,
) -> Any:
    """Turn a model into a supernet, in place.

    Args:
        model: an instance of a timm model.
        choices: path of a layer → candidates by name; a `Skip` is named "skip".
        base: the subnet to start with.
        recipe: architecture → how timm builds it, if that is known.
    """
    timm_class = type(model)
    for path, candidates in choices.items():
        model.set_submodule(path, LayerChoice(candidates))
    model.__class__ = _supernet_class(timm_class)
    assert isinstance(model, Supernet)
    model.space = SearchSpace({path: list(candidates) for path, candidates in choices.items()})
    model.base = dict(base)
    model.timm_class = timm_class
    model._recipe = recipe
    model.activate(base)
    return model


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _supernet_class(timm_class: type[nn.Module]) -> type[nn.Module]:
    if timm_class not in _classes:
        name = f"{timm_class.__name__}Supernet"
        _classes[timm_class] = type(name, (Supernet, timm_class), {"__module__": __name__})
    return _classes[timm_class]


def _empty_supernet(timm_class: type[nn.Module]) -> nn.Module:
    cls = _supernet_class(timm_class)
    return cls.__new__(cls)


def _measured_table(
    model: Any, images: torch.Tensor, measure: Callable[[nn.Module, torch.Tensor], float]
) -> AdditiveTable:
    choices = model.choices()
    inputs = {path: x for path, (x, _) in layer_inputs(model, choices, images).items()}
    terms = {
        label: {
            name: 0.0 if name == SKIP else measure(layer, inputs[label])
            for name, layer in choice.items()
        }
        for label, choice in choices.items()
    }
    architecture = model.architecture
    return AdditiveTable(
        measure(model, images) - sum(terms[label][c] for label, c in architecture.items()), terms
    )
