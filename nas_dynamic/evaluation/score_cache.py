"""Scores that are kept in a file as they come."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic.evaluation.scoring import Score
from nas_dynamic.space import Architecture
from nas_dynamic.storage.journal import Journal

__all__ = ["digest", "kept_score", "kept_scores"]


def kept_scores(
    path: str | Path,
    depends_on: dict[str, Any],
    architectures: Sequence[Architecture],
    score: Callable[[list[Architecture]], Iterable[Score]],
) -> Iterator[Score]:
    """Score architectures once, whatever stops it: what is in the file is not scored again.

    Args:
        path: of the JSON-lines file: `depends_on`, then a score a line.
        depends_on: whatever decides the scores, as plain data, such as the `digest` of the
            supernet and the images.
        architectures: what to score; their candidates are plain data.
        score: architectures → their scores in any order, as they come, such as `score_subnets`.

    Yields:
        The scores in the file, then the new ones.

    Raises:
        RunError: the file holds scores of something else.
    """
    with Journal(path, depends_on, "scoring") as journal:
        known = {_key(line["architecture"]): line for line in journal.lines}
        for architecture in architectures:
            if _key(architecture) in known:
                yield kept_score(architecture, known[_key(architecture)])
        missing = [a for a in architectures if _key(a) not in known]
        for scored in score(missing) if missing else ():
            journal.append(
                {
                    "architecture": dict(scored.architecture),
                    "accuracy": scored.accuracy,
                    "loss": scored.loss,
                }
            )
            yield scored


def kept_score(architecture: Architecture, entry: dict[str, Any]) -> Score:
    """Read a score as it was written: JSON has null for the loss of a network that diverged."""
    loss = math.nan if entry["loss"] is None else entry["loss"]
    return Score(architecture, entry["accuracy"], loss)


def digest(model: nn.Module) -> str:
    """Return a hash of all weights and buffers of a model."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if torch.is_tensor(tensor):
            plain = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(plain.numpy().tobytes())
    return total.hexdigest()


def _key(architecture: Architecture) -> str:
    return json.dumps(dict(architecture), sort_keys=True)
