"""Hugging Face transformers: `Trainer(callbacks=[DynamicSupernet(...)])`, elastic models."""

from __future__ import annotations

from nas_dynamic._extras import extra

with extra("transformers"):
    import accelerate  # noqa: F401
    import transformers  # noqa: F401

from nas_dynamic.adapters.transformers.lm.distillation import (
    attention_features,
    logits_loss,
    relation_loss,
)
from nas_dynamic.adapters.transformers.lm.importance import sort_by_importance
from nas_dynamic.adapters.transformers.lm.supernet import ElasticLM, elastic_lm
from nas_dynamic.adapters.transformers.trainer import DynamicSupernet

__all__ = [
    "DynamicSupernet",
    "ElasticLM",
    "attention_features",
    "elastic_lm",
    "logits_loss",
    "relation_loss",
    "sort_by_importance",
]
