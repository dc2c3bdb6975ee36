"""Complexity of the subnets of an elastic vision transformer, looked up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from nas_dynamic.adapters.timm.vit_space import BlockShape, VitSpace
from nas_dynamic.architecture import Architecture

__all__ = ["BlockTable"]


class BlockTable:
    """Complexity as a sum over active blocks: a look-up of a few microseconds.

    The embedding dimension enters every block, so a term of each choice alone would be wrong:
    there is one table of blocks for each embedding dimension. All layers share it, since the size
    of a block does not depend on its place.

    Args:
        space: the choices.
        measure: (embedding dimension, blocks) → complexity of that subnet. Called once for each
            embedding dimension and each combination of the candidates of one layer, and once more
            for each embedding dimension.
    """

    def __init__(
        self, space: VitSpace, measure: Callable[[int, Sequence[BlockShape]], float]
    ) -> None:
        self._search_space = space.search_space
        self._depth = _getter("depth", space.candidates, space.depth)
        self._embed_dim = _getter("embed_dim", space.candidates, space.embed_dim)
        self._keys = [_layer_key(labels) for labels in space.layer_labels]
        self._rest: dict[int, float] = {}
        self._blocks: dict[int, dict[Hashable, float]] = {}
        labels = space.layer_labels[0]
        layers = [
            dict(zip(labels.values(), combination, strict=True))
            for combination in itertools.product(*(space.candidates[name] for name in labels))
        ]
        for embed_dim in space.candidates.get("embed_dim", (space.embed_dim,)):
            blocks = {}
            for layer in layers:
                _, (block, *_) = space.shape(space.largest | layer | {"embed_dim": embed_dim})
                blocks[self._keys[0](layer)] = block
            first = next(iter(blocks.values()))
            one = measure(embed_dim, [first])
            table = {key: measure(embed_dim, [first, block]) - one for key, block in blocks.items()}
            self._blocks[embed_dim] = table
            self._rest[embed_dim] = one - next(iter(table.values()))

    def __call__(self, architecture: Architecture) -> float:
        """Look the complexity up."""
        try:
            embed_dim = self._embed_dim(architecture)
            blocks = self._blocks[embed_dim]
            active = self._keys[: self._depth(architecture)]
            return sum([blocks[key(architecture)] for key in active], self._rest[embed_dim])
        except KeyError:
            self._search_space.validate(architecture)
            raise

    def __repr__(self) -> str:
        entries = sum(len(blocks) for blocks in self._blocks.values())
        return f"BlockTable({entries} blocks, {len(self._rest)} embedding dimensions)"


def _getter(label: str, candidates: Mapping[str, Any], own: int) -> Callable[[Architecture], Any]:
    return itemgetter(label) if label in candidates else lambda architecture: own


def _layer_key(labels: Mapping[str, str]) -> Callable[[Architecture], Any]:
    return itemgetter(*labels.values()) if labels else lambda architecture: None
