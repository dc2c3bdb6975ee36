"""Evaluation: the accuracy of subnets with the weights that they inherit from a supernet."""

from __future__ import annotations

from nas_dynamic.evaluation.prefix_cache import PrefixCache
from nas_dynamic.evaluation.score_cache import digest, kept_scores
from nas_dynamic.evaluation.scoring import (
    PRECISIONS,
    Score,
    evaluate,
    evaluation_mode,
    recalibrate,
    score_subnets,
)

__all__ = [
    "PRECISIONS",
    "PrefixCache",
    "Score",
    "digest",
    "evaluate",
    "evaluation_mode",
    "kept_scores",
    "recalibrate",
    "score_subnets",
]
