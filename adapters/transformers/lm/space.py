"""The choices of an elastic language model, and the sizes that an architecture stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nas_dynamic.adapters.elastic.space import BlockSpace

__all__ = ["LayerShape", "LmSpace"]


class LayerShape(NamedTuple):
    """What can be elastic in one layer."""

    heads: int
    ffn: int
    attention: str = "softmax"


class LmSpace(BlockSpace[LayerShape]):
    """A search space that knows the sizes of a language model of its architectures.

    Args:
        width: of the model's hidden states.
        depth: number of its layers.
        layer: its query heads, and hidden features of its feed-forward part.
        key_value_heads: of the model.
        head_dim: width of a head.
        candidates: of `depth`, `width`, `heads`, `ffn` and `attention`, by name.
        per_layer: one choice for each layer, or one for all.

    Raises:
        ValueError: candidates that the model cannot be sliced to, or that leave out its own value.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        layer: LayerShape,
        key_value_heads: int,
        head_dim: int,
        candidates: Mapping[str, Sequence[Any]],
        per_layer: bool,
    ) -> None:
        self.key_value_heads = key_value_heads
        super().__init__("width", width, depth, layer, head_dim, candidates, per_layer)

    def key_value_heads_of(self, heads: int) -> int:
        """Return the number of key and value heads of a layer: each keeps its query heads."""
        if self.key_value_heads == 1:
            return 1
        return heads * self.key_value_heads // self.block.heads

    def _check_candidates(self) -> None:
        super()._check_candidates()
        self._check_sizes("ffn", self.candidates.get("ffn"), self.block.ffn)
        widths = self.candidates.get("width", ())
        follow = [width // self.head_dim for width in widths] if self.heads_follow else []
        group = self.block.heads // self.key_value_heads
        for heads in (*self.candidates.get("heads", ()), *follow):
            if self.key_value_heads > 1 and heads % group:
                raise ValueError(
                    f"heads {heads} is no multiple of {group}, the query heads of one key and "
                    f"value head; take {max(heads // group, 1) * group}"
                    + (f", a width of {max(heads // group, 1) * group * self.head_dim}")
                    * bool(follow)
                )
