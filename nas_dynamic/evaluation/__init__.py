"""Evaluation: the accuracy of subnets with the weights that they inherit from a supernet."""

from __future__ import annotations

from nas_dynamic.evaluation.batch_norm import recalibrate
from nas_dynamic.evaluation.inference import PRECISIONS
from nas_dynamic.evaluation.logits import KeptLogits
from nas_dynamic.evaluation.prefix_cache import PrefixCache
from nas_dynamic.evaluation.score_cache import digest, kept_scores
from nas_dynamic.evaluation.scoring import Score, evaluate, score_subnets

__all__ = [
    "PRECISIONS",
    "KeptLogits",
    "PrefixCache",
    "Score",
    "digest",
    "evaluate",
    "kept_scores",
    "recalibrate",
    "score_subnets",
]
