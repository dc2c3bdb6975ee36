"""Training-free metrics: model, batch → a number, and the model is as it was."""

from __future__ import annotations

from nas_dynamic.search.proxies.activations import naswot, zen
from nas_dynamic.search.proxies.copied import Batch, Loss
from nas_dynamic.search.proxies.gradients import (
    gradient_norm,
    jacobian_covariance,
    snip,
    synflow,
)
from nas_dynamic.search.proxies.measures import (
    METRICS,
    Metric,
    macs,
    parameters,
    proxy_measures,
)
from nas_dynamic.search.proxies.sequences import (
    head_confidence,
    head_importance,
    hidden_covariance,
)

__all__ = [
    "METRICS",
    "Batch",
    "Loss",
    "Metric",
    "gradient_norm",
    "head_confidence",
    "head_importance",
    "hidden_covariance",
    "jacobian_covariance",
    "macs",
    "naswot",
    "parameters",
    "proxy_measures",
    "snip",
    "synflow",
    "zen",
]
