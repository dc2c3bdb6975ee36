"""The choices of an elastic vision transformer, and the sizes that an architecture stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nas_dynamic.adapters.elastic.space import BlockSpace

__all__ = ["BlockShape", "VitSpace"]


class BlockShape(NamedTuple):
    """What can be elastic in one block."""

    heads: int
    mlp_ratio: float
    attention: str


class VitSpace(BlockSpace[BlockShape]):
    """A search space that knows the sizes of a VisionTransformer of its architectures.

    Args:
        arguments: the model's own `embed_dim`, `depth`, `num_heads` and `mlp_ratio`.
        head_dim: width of a head.
        candidates: of `depth`, `embed_dim`, and of each layer's `BlockShape`, by name.
        per_layer: one choice for each layer, or one for all.

    Raises:
        ValueError: candidates that the model cannot be sliced to, or that leave out its own value.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        head_dim: int,
        candidates: Mapping[str, Sequence[Any]],
        per_layer: bool,
    ) -> None:
        super().__init__(
            "embed_dim",
            arguments["embed_dim"],
            arguments["depth"],
            BlockShape(arguments["num_heads"], arguments["mlp_ratio"], "softmax"),
            head_dim,
            candidates,
            per_layer,
        )

    def _check_candidates(self) -> None:
        super()._check_candidates()
        self._check_ratios()

    def _check_ratios(self) -> None:
        candidates = self.candidates.get("mlp_ratio")
        if candidates is None:
            return
        smallest = min(self.candidates.get("embed_dim", [self.width]))
        hidden = int(self.width * self.block.mlp_ratio)
        for ratio in candidates:
            if not (int(smallest * ratio) > 0 and int(self.width * ratio) <= hidden):
                raise ValueError(
                    f"mlp_ratio {ratio!r} makes {int(self.width * ratio)} hidden features, of "
                    f"{hidden} in the model; leave it out, or start from a model with a "
                    "greater mlp_ratio"
                )
        # A rounded ratio, such as 2.667 for 8/3, stands for the model's own just as well.
        same = [ratio for ratio in candidates if int(self.width * ratio) == hidden]
        self._check_own("mlp_ratio", candidates, same[0] if same else self.block.mlp_ratio)
        self.block = self.block._replace(mlp_ratio=same[0])
