"""Weights of a stand-alone model for a subnet, and from there for other candidates."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nas_dynamic.space import Architecture

__all__ = ["check_weights", "crop_into"]


def check_weights(
    expected: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    architecture: Architecture,
) -> None:
    """Check that weights are those of a subnet: the same names and shapes.

    Raises:
        ValueError: they are not; names what differs.
    """
    problems = [f"lacks {name!r}" for name in expected if name not in given]
    problems += [
        f"has {name!r}, which the subnet does not" for name in given if name not in expected
    ]
    problems += [
        f"has {name!r} of shape {tuple(given[name].shape)}, the subnet {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise ValueError(
            f"the weights are not those of the subnet {dict(architecture)}: the checkpoint "
            f"{'; '.join(problems[:3])}{more}. Give the architecture that the checkpoint is of, "
            "and make the supernet with its num_classes and widths"
        )


@torch.no_grad()
def crop_into(given: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Write the overlap of each of the given tensors into the other of the same name, in place.

    The first two dimensions, channels, overlap at their start; the others, kernels, about their
    centre, and what is outside of the overlap becomes zero.
    """
    for name, target in other.items():
        source = given.get(name)
        if source is None or source.dim() != target.dim():
            continue
        here, there = [], []
        for i, (n, m) in enumerate(zip(target.shape, source.shape, strict=True)):
            size = min(n, m)
            first = (n - size) // 2 if i >= 2 else 0
            here.append(slice(first, first + size))
            first = (m - size) // 2 if i >= 2 else 0
            there.append(slice(first, first + size))
        if target.dim() > 2 and target.shape[2:] != source.shape[2:]:
            target[tuple(here[:2])] = 0
        target[tuple(here)] = source[tuple(there)]
