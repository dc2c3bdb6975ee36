"""timm's feature extractors, made by `features_only=True`: layers of the model inside, and taps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from torch import nn

from nas_dynamic.adapters.timm.choices.layers import layer_paths

__all__ = ["extracted_models", "layers_inside"]

Extracted = list[tuple[nn.Module, nn.Module]]
"""Feature extractors, each with the model that it is made of."""


@contextlib.contextmanager
def extracted_models() -> Iterator[Extracted]:
    """Record the feature extractors that are made while the context is open.

    Some of them keep the modules of the model, under other names, but not the model itself, which
    alone tells what its layers are.
    """
    made: Extracted = []

    def recording(original: Callable[..., None]) -> Callable[..., None]:
        def init(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(self, model, *args, **kwargs)
            made.append((self, model))

        return init

    with contextlib.ExitStack() as stack:
        for cls in (FeatureDictNet, FeatureHookNet, FeatureGetterNet):
            patch = mock.patch.object(cls, "__init__", recording(cls.__init__))
            stack.enter_context(patch)
        yield made


def layers_inside(extracted: Extracted) -> str | None:
    """Return a regular expression of the layers of extractors, as of the models inside.

    None where there is no extractor.
    """
    found = set()
    for extractor, model in extracted:
        names = {id(module): name for name, module in extractor.named_modules()}
        inside = [id(model.get_submodule(path)) for path in layer_paths(model)]
        # What comes after the last features is left out of an extractor.
        found |= {re.escape(names[layer]) for layer in inside if layer in names}
    return "|".join(sorted(found)) if extracted else None
