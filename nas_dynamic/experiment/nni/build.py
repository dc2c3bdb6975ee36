"""What a configuration names, built: spaces, subnets, optimizers, lr schedulers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from nas_dynamic._extras import extra
from nas_dynamic.adapters.nni.space import sample_of
from nas_dynamic.experiment.config import FOREIGN, Config, ConfigError, kwargs_of, refusing
from nas_dynamic.space import Architecture

with extra("nni"):
    from nni.nas.hub import pytorch as hub
    from nni.nas.nn.pytorch import ModelSpace

__all__ = [
    "build_optimizer",
    "build_scheduler",
    "build_space",
    "build_subnet",
    "space_arguments",
    "updates_of",
]


def build_space(config: Config, classes: int) -> ModelSpace:
    """Return the model space of a configuration, with new weights.

    Spaces of NNI's hub, and functions that take `num_labels`, are given the number of classes
    where the configuration does not set it. NDS spaces (DARTS, ENAS, …) take it from their
    `dataset`.

    Raises:
        ConfigError: there is no such space, or it does not take the arguments.
    """
    name = config.space.name
    factory, kwargs = _factory_and_arguments(config, classes)
    # What else a space of one's own raises may be a bug in it.
    with refusing(kwargs_of("space", config.space), *(FOREIGN if _of_hub(factory) else ())):
        model_space = factory(**kwargs)
    if not isinstance(model_space, ModelSpace):
        raise ConfigError(
            f"space.name is {name!r}, which gives a {type(model_space).__name__}; "
            "it must give an NNI ModelSpace"
        )
    return model_space


def space_arguments(config: Config, classes: int) -> tuple[str, str, dict[str, Any]]:
    """Return what a space is imported from, its name, and the arguments that it is built with."""
    factory, kwargs = _factory_and_arguments(config, classes)
    module, _, attribute = config.space.name.rpartition(":")
    return (hub.__name__ if _of_hub(factory) else module), attribute, kwargs


def _factory_and_arguments(
    config: Config, classes: int
) -> tuple[Callable[..., Any], dict[str, Any]]:
    factory, kwargs = _space_factory(config.space.name), dict(config.space.kwargs)
    # The classes of model spaces hide their arguments: NNI wraps `__init__`.
    if inspect.isclass(factory) and issubclass(factory, ModelSpace):
        takes_classes = _of_hub(factory) and not issubclass(factory, hub.NDS)
    else:
        with refusing(kwargs_of("space", config.space)):
            takes_classes = "num_labels" in inspect.signature(factory).parameters
    if takes_classes:
        kwargs.setdefault("num_labels", classes)
    return factory, kwargs


def _of_hub(factory: Callable[..., Any]) -> bool:
    return vars(hub).get(getattr(factory, "__name__", "")) is factory


def build_optimizer(
    config: Config, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration.

    Raises:
        ConfigError: it does not take the arguments, or the parameters.
    """
    chosen = config.optimizer
    with refusing(kwargs_of("optimizer", chosen), *FOREIGN):
        optimizer: torch.optim.Optimizer = getattr(torch.optim, chosen.name)(
            parameters, **chosen.kwargs
        )
    return optimizer


def build_scheduler(
    config: Config, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return the lr scheduler of a configuration, if it has one.

    Raises:
        ConfigError: it does not take the arguments.
    """
    chosen = config.scheduler
    if chosen is None:
        return None
    with refusing(kwargs_of("scheduler", chosen), *FOREIGN):
        kind = getattr(torch.optim.lr_scheduler, chosen.name)
        scheduler: torch.optim.lr_scheduler.LRScheduler = kind(optimizer, **chosen.kwargs)
    return scheduler


def build_subnet(config: Config, classes: int, architecture: Architecture) -> torch.nn.Module:
    """Return a stand-alone subnet of the space of a configuration, with new weights."""
    model_space = build_space(config, classes)
    subnet: torch.nn.Module = model_space.freeze(sample_of(architecture, model_space))
    return subnet


def updates_of(config: Config, batches: int) -> int:
    """Return the number of updates in the budget of a configuration, given those of an epoch."""
    return config.steps or (config.epochs or 0) * batches


def _space_factory(name: str) -> Callable[..., Any]:
    if ":" in name:
        module, _, attribute = name.partition(":")
        if not module or module.startswith("."):
            raise ConfigError(f"space.name is {name!r}; it must be module:callable, absolute")
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"space.name is {name!r}: cannot import it: {error}") from error
        if not callable(factory):
            raise ConfigError(
                f"space.name is {name!r}, which is a {type(factory).__name__}; it must be a "
                "callable that returns an NNI ModelSpace"
            )
        return factory  # type: ignore[no-any-return]
    known = [
        key
        for key, value in vars(hub).items()
        if inspect.isclass(value) and issubclass(value, ModelSpace)
    ]
    if name not in known:
        raise ConfigError(
            f"space.name is {name!r}; it must be module:callable or one of {', '.join(known)}"
        )
    return getattr(hub, name)  # type: ignore[no-any-return]
