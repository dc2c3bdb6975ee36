"""Losses by which a subnet learns from a teacher: of logits, and of attention relations.

A teacher is the largest subnet of the supernet itself (in place, with `SandwichSampler`), or any
other language model of the same vocabulary. The losses are functions of tensors, for any loop.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nas_dynamic.adapters.transformers.lm.families import family_of
from nas_dynamic.adapters.transformers.lm.supernet import ElasticLM

__all__ = ["attention_features", "logits_loss", "relation_loss"]


def logits_loss(
    student: torch.Tensor, teacher: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Return T² · KL(teacher ‖ student), the mean over tokens, in nats.

    Args:
        student: logits, shape (…, vocabulary).
        teacher: logits of the same shape; no gradient flows into them.
        temperature: T, what both are divided by.

    Raises:
        ValueError: the shapes differ.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531;
        in place: Yu and Huang, "Universally Slimmable Networks", ICCV 2019, arXiv 1903.05134.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> float(logits_loss(logits, logits))
        0.0
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"logits of the student are {tuple(student.shape)}, of the teacher "
            f"{tuple(teacher.shape)}; give those of the same tokens and vocabulary"
        )
    return temperature**2 * _divergence(teacher / temperature, student / temperature)


@contextlib.contextmanager
def attention_features(model: nn.Module, layer: int = -1) -> Iterator[list[torch.Tensor]]:
    """Collect queries, keys and values of a layer in the forward passes inside of the context.

    Args:
        model: an elastic language model, whose active subnet counts, or one that `elastic_lm`
            takes.
        layer: its number; the last active one by default.

    Yields:
        Of the last forward pass the three tensors, shape (sequences, tokens, features).

    Raises:
        IndexError: there is no such layer.
        RuntimeError: no gradient can flow into the features, by reentrant gradient checkpointing.
    """
    family = model.family if isinstance(model, ElasticLM) else family_of(model)
    features: list[torch.Tensor] = []
    differentiable = torch.is_grad_enabled()

    def hook(projection: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        checkpointed = model.training and getattr(model, "is_gradient_checkpointing", False)
        if checkpointed and differentiable and not torch.is_grad_enabled():
            raise RuntimeError(
                "reentrant gradient checkpointing computes layers without gradients, so none would "
                "flow into their features: enable it with use_reentrant=False"
            )
        if len(features) >= 3:
            features.clear()
        fused = len(projections) == 1
        features.extend(output.chunk(3, dim=-1) if fused else [output])

    projections = family.projections(operator.attrgetter(family.layers)(model)[layer])
    hooks = [projection.register_forward_hook(hook) for projection in projections]
    try:
        yield features
    finally:
        for registered in hooks:
            registered.remove()


def relation_loss(
    student: list[torch.Tensor], teacher: list[torch.Tensor], *, heads: int
) -> torch.Tensor:
    """Return the mean divergence of the student's attention relations from the teacher's, in nats.

    Relations of queries are softmax(Q Qᵀ / √d) over pairs of tokens, of keys and values alike, with
    features cut into relation heads of width d. So widths and numbers of heads of the two may
    differ.

    Args:
        student: queries, keys and values, from `attention_features`.
        teacher: the same of the teacher; no gradient flows into them.
        heads: relation heads. They divide all the features.

    Raises:
        ValueError: the heads do not divide the features.

    Source: Wang et al., "MiniLMv2", Findings of ACL 2021, arXiv 2012.15828, as in Xu et al.,
        "AutoDistil", 2022, arXiv 2201.12507.
    """
    losses = [
        _divergence(_relations(of_teacher, heads), _relations(of_student, heads))
        for of_student, of_teacher in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).mean()


def _divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Return KL of the softmax over the last dimension, the mean over all others."""
    wanted = F.log_softmax(teacher.detach().float(), dim=-1).flatten(0, -2)
    given = F.log_softmax(student.float(), dim=-1).flatten(0, -2)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True)


def _relations(features: torch.Tensor, heads: int) -> torch.Tensor:
    """Return scores (sequences, heads, tokens, tokens), before the softmax."""
    width = features.shape[-1]
    if width % heads:
        raise ValueError(
            f"{heads} relation heads do not divide {width} features; take a divisor of the "
            "features of student and teacher, keys and values among them"
        )
    split = features.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores: torch.Tensor = split @ split.transpose(-2, -1) / math.sqrt(width // heads)
    return scores
