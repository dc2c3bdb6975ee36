"""Complexity of the subnets of an elastic vision transformer, looked up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from nas_dynamic.adapters.timm.vit.space import BlockShape, VitSpace
from nas_dynamic.complexity import LookupTable
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["BlockTable"]


class BlockTable(LookupTable):
    """Complexity as a sum over active blocks: a look-up of a few microseconds.

    The embedding dimension enters every block, so a term of each choice alone would be wrong:
    there is one table of blocks for each embedding dimension. All layers share it, since the size
    of a block does not depend on its place.

    Args:
        space: the choices.
        layers: for each layer the labels that decide about its block.
        fixed: `depth` and `embed_dim`, where they are no choices.
        rest: embedding dimension → what is outside of the blocks.
        blocks: embedding dimension → candidates of a layer, in the order of its labels → one
            block.
    """

    def __init__(
        self,
        space: SearchSpace,
        layers: Sequence[Sequence[str]],
        fixed: Mapping[str, int],
        rest: Mapping[int, float],
        blocks: Mapping[int, Mapping[tuple[Hashable, ...], float]],
    ) -> None:
        self.space = space
        self.layers = [tuple(labels) for labels in layers]
        self.fixed = dict(fixed)
        self.rest = dict(rest)
        self.blocks = {embed_dim: dict(table) for embed_dim, table in blocks.items()}
        self._depth = _getter("depth", fixed)
        self._embed_dim = _getter("embed_dim", fixed)
        keys = [_key(labels) for labels in self.layers]
        depths: Any = space.choices.get("depth", [len(keys)])
        self._active = {depth: keys[:depth] for depth in depths}

    @classmethod
    def measure(
        cls, space: VitSpace, measure: Callable[[int, Sequence[BlockShape]], float]
    ) -> BlockTable:
        """Make the table from subnets of one block and of two.

        Args:
            space: the choices.
            measure: (embedding dimension, blocks) → complexity of that subnet. Called once for
                each embedding dimension and each combination of the candidates of one layer, and
                once more for each embedding dimension.
        """
        first_labels = space.layer_labels[0]
        combinations = list(itertools.product(*(space.candidates[n] for n in first_labels)))
        rest, blocks = {}, {}
        for embed_dim in space.candidates.get("embed_dim", (space.embed_dim,)):
            shapes = {}
            for candidates in combinations:
                layer = dict(zip(first_labels.values(), candidates, strict=True))
                _, (shape, *_) = space.shape(space.base | layer | {"embed_dim": embed_dim})
                shapes[candidates] = shape
            first = shapes[combinations[0]]
            one = measure(embed_dim, [first])
            table = {c: measure(embed_dim, [first, shape]) - one for c, shape in shapes.items()}
            blocks[embed_dim] = table
            rest[embed_dim] = one - table[combinations[0]]
        own = {"depth": space.depth, "embed_dim": space.embed_dim}
        return cls(
            space,
            [tuple(labels.values()) for labels in space.layer_labels],
            {name: size for name, size in own.items() if name not in space.candidates},
            rest,
            blocks,
        )

    def __call__(self, architecture: Architecture) -> float:
        """Look the complexity up."""
        try:
            embed_dim = self._embed_dim(architecture)
            blocks = self.blocks[embed_dim]
            active = self._active[self._depth(architecture)]
            return sum([blocks[key(architecture)] for key in active], self.rest[embed_dim])
        except KeyError:
            self.space.validate(architecture)
            raise

    def __repr__(self) -> str:
        entries = sum(len(blocks) for blocks in self.blocks.values())
        return f"BlockTable({entries} blocks, {len(self.rest)} embedding dimensions)"

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        content = {
            "choices": [[label, candidates] for label, candidates in self.space.choices.items()],
            "layers": self.layers,
            "fixed": self.fixed,
            "tables": [
                [embed_dim, rest, [*self.blocks[embed_dim].items()]]
                for embed_dim, rest in self.rest.items()
            ],
        }
        Path(path).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> BlockTable:
        """Read a table that `save` wrote.

        Raises:
            ValueError: the file is no such table.
        """
        try:
            content = json.loads(Path(path).read_text())
            return cls(
                SearchSpace(dict(content["choices"])),
                content["layers"],
                content["fixed"],
                {embed_dim: float(rest) for embed_dim, rest, _ in content["tables"]},
                {
                    embed_dim: {tuple(key): float(value) for key, value in blocks}
                    for embed_dim, _, blocks in content["tables"]
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is no table that BlockTable.save wrote: {error!r}. Measure it again"
            ) from error


def _getter(label: str, fixed: Mapping[str, int]) -> Callable[[Architecture], Any]:
    return (lambda architecture: fixed[label]) if label in fixed else itemgetter(label)


def _key(labels: Sequence[str]) -> Callable[[Architecture], tuple[Hashable, ...]]:
    if len(labels) > 1:
        return itemgetter(*labels)
    return lambda architecture: tuple([architecture[label] for label in labels])
