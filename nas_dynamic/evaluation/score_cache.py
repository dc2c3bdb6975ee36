"""Scores that are kept in a file as they come."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic.evaluation.scoring import Score
from nas_dynamic.space import Architecture, architecture_from_json, key
from nas_dynamic.storage.journal import Journal

__all__ = ["digest", "kept_scores"]


def kept_scores(
    path: str | Path,
    depends_on: dict[str, Any],
    architectures: Iterable[Architecture],
    score: Callable[[list[Architecture]], Iterable[Score]],
) -> Iterator[Score]:
    """Score architectures once, whatever stops it: what is in the file is not scored again.

    Args:
        path: of the JSON-lines file: `depends_on`, then a score a line.
        depends_on: whatever decides the scores, as plain data, such as the `digest` of the
            supernet and the images, or the budget of stand-alone trainings.
        architectures: what to score, each once; their candidates are plain data.
        score: architectures → their scores in any order, as they come, such as `score_subnets`.

    Yields:
        The scores in the file, then the new ones.

    Raises:
        RunError: the file holds scores of something else.
    """
    wanted = {key(architecture): architecture for architecture in architectures}
    with Journal(path, depends_on, "scoring") as journal:
        known = {key(architecture_from_json(line["architecture"])): line for line in journal.lines}
        for name in (name for name in wanted if name in known):
            # JSON has null for the loss of a network that diverged.
            loss = math.nan if known[name]["loss"] is None else known[name]["loss"]
            yield Score(wanted[name], known[name]["accuracy"], loss)
        missing = [architecture for name, architecture in wanted.items() if name not in known]
        for scored in score(missing) if missing else ():
            journal.append(
                {
                    "architecture": dict(scored.architecture),
                    "accuracy": scored.accuracy,
                    "loss": scored.loss,
                }
            )
            yield scored


def digest(content: nn.Module | Mapping[Any, Any]) -> str:
    """Return a hash of all weights and buffers of a model, of named tensors, or of plain data."""
    total = hashlib.sha256()
    named = content.state_dict() if isinstance(content, nn.Module) else content
    tensors = {name: value for name, value in named.items() if torch.is_tensor(value)}
    if isinstance(content, nn.Module) or tensors:
        for name, tensor in tensors.items():
            plain = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(plain.numpy().tobytes())
    else:
        total.update(json.dumps(content, sort_keys=True).encode())
    return total.hexdigest()
