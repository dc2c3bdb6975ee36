"""Complexity of the subnets of an elastic transformer, looked up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from nas_dynamic.adapters.elastic.space import BlockSpace
from nas_dynamic.complexity import LookupTable
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["BlockTable"]


class BlockTable(LookupTable):
    """Complexity as a sum over active blocks: a look-up of a few microseconds.

    The width of the tokens enters every block, so a term of each choice alone would be wrong:
    there is one table of blocks for each width. All layers share it, since the size
    of a block does not depend on its place.

    Args:
        space: the choices.
        layers: for each layer the labels that decide about its block.
        fixed: `depth` and the width, where they are no choices.
        rest: width → what is outside of the blocks.
        blocks: width → candidates of a layer, in the order of its labels → one block.
        width_label: what the width of the tokens is called.
    """

    def __init__(
        self,
        space: SearchSpace,
        layers: Sequence[Sequence[str]],
        fixed: Mapping[str, int],
        rest: Mapping[int, float],
        blocks: Mapping[int, Mapping[tuple[Hashable, ...], float]],
        width_label: str = "embed_dim",
    ) -> None:
        self.space = space
        self.layers = [tuple(labels) for labels in layers]
        self.fixed = dict(fixed)
        self.rest = dict(rest)
        self.blocks = {width: dict(table) for width, table in blocks.items()}
        self.width_label = width_label
        self._depth = _getter("depth", fixed)
        self._width = _getter(width_label, fixed)
        keys = [_key(labels) for labels in self.layers]
        depths: Any = space.choices.get("depth", [len(keys)])
        self._active = {depth: keys[:depth] for depth in depths}

    @classmethod
    def measure(
        cls, space: BlockSpace[Any], measure: Callable[[int, Sequence[Any]], float]
    ) -> BlockTable:
        """Make the table from subnets of one block and of two.

        Args:
            space: the choices.
            measure: (width of the tokens, blocks) → complexity of that subnet. Called once for
                each width and each combination of the candidates of one layer, and once more for
                each width.
        """
        first_labels = space.layer_labels[0]
        combinations = list(itertools.product(*(space.candidates[n] for n in first_labels)))
        rest, blocks = {}, {}
        for width in space.candidates.get(space.width_label, (space.width,)):
            shapes = {}
            for candidates in combinations:
                layer = dict(zip(first_labels.values(), candidates, strict=True))
                _, (shape, *_) = space.shape(space.base | layer | {space.width_label: width})
                shapes[candidates] = shape
            first = shapes[combinations[0]]
            one = measure(width, [first])
            table = {c: measure(width, [first, shape]) - one for c, shape in shapes.items()}
            blocks[width] = table
            rest[width] = one - table[combinations[0]]
        own = {"depth": space.depth, space.width_label: space.width}
        return cls(
            space,
            [tuple(labels.values()) for labels in space.layer_labels],
            {name: size for name, size in own.items() if name not in space.candidates},
            rest,
            blocks,
            space.width_label,
        )

    def __call__(self, architecture: Architecture) -> float:
        """Look the complexity up."""
        try:
            width = self._width(architecture)
            blocks = self.blocks[width]
            active = self._active[self._depth(architecture)]
            return sum([blocks[key(architecture)] for key in active], self.rest[width])
        except KeyError:
            self.space.validate(architecture)
            raise

    def __repr__(self) -> str:
        entries = sum(len(blocks) for blocks in self.blocks.values())
        return f"BlockTable({entries} blocks, {len(self.rest)} widths)"

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        content = {
            "choices": [[label, candidates] for label, candidates in self.space.choices.items()],
            "layers": self.layers,
            "fixed": self.fixed,
            "width_label": self.width_label,
            "tables": [
                [width, rest, [*self.blocks[width].items()]] for width, rest in self.rest.items()
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
                {width: float(rest) for width, rest, _ in content["tables"]},
                {
                    width: {tuple(key): float(value) for key, value in blocks}
                    for width, _, blocks in content["tables"]
                },
                content.get("width_label", "embed_dim"),
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
