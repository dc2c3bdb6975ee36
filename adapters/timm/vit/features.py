"""Elastic vision transformers as backbones, in timm's `FeatureGetterNet`."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg
from timm.models._features import FeatureGetterNet
from torch import nn

from nas_dynamic.adapters.timm.recipe import Recipe, build, to_json
from nas_dynamic.adapters.timm.supernet import Measure, Supernet
from nas_dynamic.complexity import LookupTable
from nas_dynamic.space import Architecture

__all__ = ["ElasticFeatures"]


class ElasticFeatures(Supernet, FeatureGetterNet):
    """A timm FeatureGetterNet of an elastic vision transformer; made by `elastic_vit`.

    It computes the feature maps of one of the subnets, which all have the same shapes.

    Attributes:
        model: the elastic vision transformer.
    """

    model: Supernet

    @property
    def layer_labels(self) -> dict[str, tuple[str, ...]]:
        """See `Supernet.layer_labels`."""
        return {f"model.{path}": labels for path, labels in self.model.layer_labels.items()}

    def subnet_parameters(self) -> LookupTable:
        """Return architecture → number of parameters of the stand-alone subnet; exact."""
        return self.model.subnet_parameters()

    def _select(self, architecture: Architecture) -> None:
        self.model.activate(architecture)

    def _weights(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        inside = self.model._weights(architecture)
        return {f"model.{name}": tensor for name, tensor in inside.items()}

    def _recipe(self, architecture: Architecture) -> Recipe:
        model = self.model._recipe(architecture)["model"]
        config: Any = getattr(self, "pretrained_cfg", None) or {}
        extractor = {
            "feature_cls": "getter",
            "out_indices": self.out_indices,
            "norm": self.norm,
            "output_fmt": self.output_fmt.value,
        }
        arguments = {
            "variant": config.get("architecture") or "vit",
            "pretrained": False,
            "features_only": True,
            "feature_cfg": extractor,
        }
        own = {"model_cls": {"name": model["name"]}, **to_json(arguments), **model["with"]}
        return {"model": {**to_json(build_model_with_cfg), "with": own}}

    def _rebuilt(self, architecture: Architecture) -> nn.Module:
        return build(self._recipe(architecture), device="meta", weight_init="skip")

    def _table(self, measure: Measure, images: torch.Tensor) -> Any:
        return self.model._table(measure, images)
