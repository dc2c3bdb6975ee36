"""timm: supernets from timm's model builders, trained in timm's own loop."""

from __future__ import annotations

try:
    import timm  # noqa: F401
except ImportError as error:
    raise ImportError(
        "nas_dynamic.adapters.timm needs timm: pip install 'nas-dynamic[timm]' "
        f"(missing or broken: {error})"
    ) from error

from nas_dynamic.adapters.elastic.table import BlockTable
from nas_dynamic.adapters.timm.choices.choice import SKIP, LayerChoice
from nas_dynamic.adapters.timm.choices.fusion import fuse
from nas_dynamic.adapters.timm.choices.mobile import mobile_supernet
from nas_dynamic.adapters.timm.choices.supernet import LayerChoiceSupernet
from nas_dynamic.adapters.timm.recipe import build
from nas_dynamic.adapters.timm.supernet import Supernet
from nas_dynamic.adapters.timm.training import Attached, attach
from nas_dynamic.adapters.timm.vit.supernet import ElasticVisionTransformer, elastic_vit

__all__ = [
    "SKIP",
    "Attached",
    "BlockTable",
    "ElasticVisionTransformer",
    "LayerChoice",
    "LayerChoiceSupernet",
    "Supernet",
    "attach",
    "build",
    "elastic_vit",
    "fuse",
    "mobile_supernet",
]
