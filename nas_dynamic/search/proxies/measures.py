"""Training-free metrics as what a search knows of a subnet without scoring it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nas_dynamic.complexity import CachedComplexity, count_macs, count_parameters
from nas_dynamic.evaluation.supernet import Supernet
from nas_dynamic.search.proxies.activations import naswot, zen
from nas_dynamic.search.proxies.copied import Batch
from nas_dynamic.search.proxies.gradients import (
    gradient_norm,
    jacobian_covariance,
    snip,
    synflow,
)
from nas_dynamic.search.proxies.sequences import (
    head_confidence,
    head_importance,
    hidden_covariance,
)
from nas_dynamic.space import Architecture

__all__ = ["METRICS", "Metric", "macs", "parameters", "proxy_measures"]

Metric = Callable[[nn.Module, Batch], float]
"""Model, batch → a number that needs no training."""


def parameters(model: nn.Module, batch: Batch) -> float:
    """Return the number of parameters that the output depends on.

    Of a supernet these are the active subnet's, those that it uses a slice of whole.
    """
    return float(count_parameters(_OneInput(model), batch[0]))


def macs(model: nn.Module, batch: Batch) -> float:
    """Return the multiply-accumulates of one forward pass of one input."""
    return count_macs(_OneInput(model), batch[0])


METRICS: Mapping[str, Metric] = {
    "gradient_norm": gradient_norm,
    "snip": snip,
    "synflow": synflow,
    "naswot": naswot,
    "jacobian_covariance": jacobian_covariance,
    "zen": zen,
    "parameters": parameters,
    "macs": macs,
    "hidden_covariance": hidden_covariance,
    "head_confidence": head_confidence,
    "head_importance": head_importance,
}
"""All metrics by name. More need not be better: a search learns or states the sign."""


def proxy_measures(
    supernet: Supernet,
    batch: Batch,
    metrics: Iterable[str] | Mapping[str, Metric] = ("naswot", "synflow", "jacobian_covariance"),
    *,
    extract: Callable[[Architecture], nn.Module] | None = None,
) -> dict[str, Callable[[Architecture], float]]:
    """Return training-free metrics of subnets as `measures` of a search, each computed once.

    Args:
        supernet: computes the subnets; afterwards the last one is active.
        batch: (inputs, labels) that all subnets are measured on.
        metrics: keys of `METRICS`, or name → metric.
        extract: architecture → stand-alone network, measured in place of the active subnet.

    Raises:
        ValueError: a metric is not known.

    Example:
        >>> from nas_dynamic.search import PretrainedMLP, Surrogate
        >>> strategy = Surrogate(PretrainedMLP(subnets=200))  # learns what measures it finds
        >>> # search_supernet(…, strategy=strategy, measures=proxy_measures(supernet, batch))
    """
    if not isinstance(metrics, Mapping):
        names = list(metrics)
        if unknown := sorted(set(names) - set(METRICS)):
            raise ValueError(f"{unknown} is no metric; metrics are {', '.join(METRICS)}")
        metrics = {name: METRICS[name] for name in names}

    def of_subnet(metric: Metric) -> Callable[[Architecture], float]:
        def measure(architecture: Architecture) -> float:
            if extract is not None:
                return metric(extract(architecture), batch)
            supernet.activate(architecture)
            return metric(cast(nn.Module, supernet), batch)

        return CachedComplexity(supernet.space, measure)

    return {name: of_subnet(metric) for name, metric in metrics.items()}


class _OneInput(nn.Module):
    """A model that is called with a batch, and computes its first input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        first = tree_map_only(Tensor, lambda t: t[:1].to(tensors[0].device), inputs)
        return self.model(**first) if isinstance(first, Mapping) else self.model(first)
