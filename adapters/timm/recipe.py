"""Recipes: how timm builds a model, as JSON that can be read without this package.

    {"model": {"name": "timm.create_model", "with": {"model_name": "resnet18", "num_classes": 10}},
     "replace": {"layer1.1": {"model": …}},
     "remove": ["layer2.1"]}

A callable is its importable name; one with arguments, as by `functools.partial`, has them under
`with`. `replace` takes layers, by path, from models of other recipes; `remove` then leaves
layers out, so that those after them in their `nn.Sequential` move up.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from torch import nn

__all__ = ["Recipe", "build", "constructor_calls", "remove_layers", "to_json"]

Recipe = dict[str, Any]


def build(recipe: Mapping[str, Any], **arguments: Any) -> nn.Module:
    """Build the model of a recipe, with new weights; `arguments` are further ones of its own."""
    model: nn.Module = _from_json(recipe["model"])(**arguments)
    others: dict[str, nn.Module] = {}
    for path, other in recipe.get("replace", {}).items():
        key = repr(other)
        if key not in others:
            others[key] = build(other)
        model.set_submodule(path, others[key].get_submodule(path))
    remove_layers(model, recipe.get("remove", []))
    return model


def remove_layers(model: nn.Module, paths: list[str]) -> None:
    """Leave layers of `nn.Sequential`s out, in place."""
    for path in sorted(paths, key=lambda path: int(path.rpartition(".")[2]), reverse=True):
        parent, _, index = path.rpartition(".")
        del model.get_submodule(parent)[int(index)]  # type: ignore[operator]


def to_json(value: Any, where: str = "model") -> Any:
    """Return arguments of a constructor as JSON values.

    Raises:
        ValueError: a callable that cannot be imported by name, or an object of another kind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, functools.partial) and not value.args:
        return to_json(value.func, where) | {"with": to_json(value.keywords, where)}
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        if pkgutil.resolve_name(name) is value:
            return {"name": name}
    raise ValueError(
        f"{where} is {value!r}, which cannot be written to JSON; give a plain value, a class or "
        "function that can be imported by name, or functools.partial of one with keywords"
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        return {key: _from_json(item) for key, item in value.items()}
    function = pkgutil.resolve_name(value["name"])
    arguments = _from_json(value.get("with", {}))
    return functools.partial(function, **arguments) if arguments else function


@contextlib.contextmanager
def constructor_calls(*classes: type) -> Iterator[list[tuple[type, dict[str, Any]]]]:
    """Record what the classes are constructed with, by keyword, while the context is open.

    timm's entry points decode an arch_def and hand it to the constructor; they offer no way to
    ask for it, or to change it.
    """
    calls: list[tuple[type, dict[str, Any]]] = []

    def recording(cls: type, original: Callable[..., None]) -> Callable[..., None]:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            if type(self) is cls and not args:
                calls.append((cls, copy.deepcopy(kwargs)))  # a build consumes its block_args
            original(self, *args, **kwargs)

        return init

    with contextlib.ExitStack() as stack:
        for cls in classes:
            original = cls.__init__  # type: ignore[misc]
            stack.enter_context(mock.patch.object(cls, "__init__", recording(cls, original)))
        yield calls
