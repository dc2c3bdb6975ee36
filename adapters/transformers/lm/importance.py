"""Put what matters most first, so that subnets, which are the first slices, start from it."""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn

from nas_dynamic.adapters.transformers.lm.families import family_of
from nas_dynamic.evaluation.inference import evaluation_mode

__all__ = ["sort_by_importance"]

Model = TypeVar("Model", bound=nn.Module)


def sort_by_importance(model: Model, batches: Iterable[torch.Tensor]) -> Model:
    """Return a copy of a language model with its heads and hidden features sorted, best first.

    The copy computes what the model does, but for rounding. Its subnets by `elastic_lm` are of the
    heads and features that weigh most on some text: for a pretrained model, before it is trained
    on as a supernet. A key and value head moves with the query heads that share it.

    Args:
        model: as `elastic_lm` takes it.
        batches: token ids, of shape (sequences, tokens), on the device of the model; a few.

    Returns:
        The sorted model. The importance of a hidden feature is the mean of |x|, that of a head the
        mean norm of its output, where the projections back to the hidden states read them.

    Raises:
        TypeError: the model is of a class that cannot be elastic.
        ValueError: there is no batch.

    Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation"
        (Minitron), NeurIPS 2024, arXiv 2407.14679, section 2.2.
    """
    family = family_of(model)
    ordered: Any = copy.deepcopy(model)
    config = ordered.config
    head_dim = family.head_dim(config)
    heads, key_value_heads = config.num_attention_heads, family.key_value_heads(config)
    layers = operator.attrgetter(family.layers)(ordered)
    sums: dict[nn.Module, Any] = defaultdict(float)

    def note(norm: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
        def hook(projection: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            tokens = inputs[0].detach().double().flatten(0, -2)
            sums[projection] = sums[projection] + norm(tokens).sum(0)

        return hook

    def of_heads(tokens: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = tokens.unflatten(-1, (heads, head_dim)).norm(dim=-1)
        return norms

    hooks = []
    for layer in layers:
        attention, ffn = family.outputs(layer)
        hooks += [
            attention.register_forward_pre_hook(note(of_heads)),
            ffn.register_forward_pre_hook(note(torch.abs)),
        ]
    try:
        with evaluation_mode(ordered), torch.no_grad():
            for batch in batches:
                ordered(batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not sums:
        raise ValueError("no batch to measure the importance on; give a few of token ids")
    for layer in layers:
        attention, ffn = family.outputs(layer)
        of_groups = sums[attention].unflatten(0, (key_value_heads, -1))
        groups = of_groups.sum(1).argsort(descending=True, stable=True)
        inside = of_groups[groups].argsort(dim=1, descending=True, stable=True)
        first = groups[:, None] * (heads // key_value_heads)
        queries = _entries((first + inside).flatten(), head_dim)
        features = sums[ffn].argsort(descending=True, stable=True)
        with torch.no_grad():
            family.reorder(layer, queries, _entries(groups, head_dim), features)
    return cast(Model, ordered)


def _entries(heads: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return the numbers of all the features of heads."""
    return (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).flatten()
