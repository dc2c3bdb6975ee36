"""The choices of an elastic vision transformer, and the sizes that an architecture stands for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from nas_dynamic.adapters.timm.vit.attention import ATTENTIONS
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["BlockShape", "VitSpace"]


class BlockShape(NamedTuple):
    """What can be elastic in one block."""

    heads: int
    mlp_ratio: float
    attention: str


class VitSpace(SearchSpace):
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
        self.embed_dim: int = arguments["embed_dim"]
        self.depth: int = arguments["depth"]
        self.head_dim = head_dim
        self.block = BlockShape(arguments["num_heads"], arguments["mlp_ratio"], "softmax")
        self.candidates = {name: tuple(values) for name, values in candidates.items()}
        # Heads without candidates follow the embedding where they do so in the model.
        self.heads_follow = (
            "heads" not in candidates and self.block.heads * head_dim == self.embed_dim
        )
        self._check_candidates()
        self.layer_labels = [
            {
                name: f"{name}{layer + 1}" if per_layer else name
                for name in BlockShape._fields
                if name in candidates
            }
            for layer in range(self.depth)
        ]
        choices = {k: self.candidates[k] for k in ("depth", "embed_dim") if k in candidates}
        for labels in self.layer_labels:
            choices |= {label: self.candidates[name] for name, label in labels.items()}
        super().__init__(choices)

    @property
    def base(self) -> dict[str, Hashable]:
        """The architecture of the model itself, the largest one."""
        own: dict[str, Any] = {"depth": self.depth, "embed_dim": self.embed_dim}
        for labels in self.layer_labels:
            own |= {label: getattr(self.block, name) for name, label in labels.items()}
        return {label: own[label] for label in self.labels}

    def shape(self, architecture: Architecture) -> tuple[int, list[BlockShape]]:
        """Return the embedding dimension and active blocks of an architecture of the space."""
        sizes: Mapping[str, Any] = architecture
        embed_dim = sizes.get("embed_dim", self.embed_dim)
        own = self.block
        if self.heads_follow:
            own = own._replace(heads=embed_dim // self.head_dim)
        return embed_dim, [
            own._replace(**{name: sizes[label] for name, label in labels.items()})
            for labels in self.layer_labels[: sizes.get("depth", self.depth)]
        ]

    def _check_candidates(self) -> None:
        candidates, own = self.candidates, self.block
        self._check_sizes("depth", candidates.get("depth"), self.depth)
        self._check_sizes("embed_dim", candidates.get("embed_dim"), self.embed_dim)
        self._check_sizes("heads", candidates.get("heads"), own.heads)
        for embed_dim in candidates.get("embed_dim", ()):
            if self.heads_follow and embed_dim % self.head_dim:
                below = embed_dim // self.head_dim * self.head_dim
                raise ValueError(
                    f"embed_dim {embed_dim} does not divide into heads of width {self.head_dim}; "
                    f"take {below or below + self.head_dim}, or give candidates of heads, which "
                    "then need not fill the embedding"
                )
        for attention in candidates.get("attention", ("softmax",)):
            if attention not in ATTENTIONS:
                raise ValueError(
                    f"attention {attention!r} is unknown; choose from {', '.join(ATTENTIONS)}"
                )
        self._check_own("attention", candidates.get("attention"), "softmax")
        self._check_ratios()

    def _check_sizes(self, name: str, candidates: Sequence[Any] | None, own: int) -> None:
        for candidate in candidates or ():
            if not isinstance(candidate, int) or not 0 < candidate <= own:
                raise ValueError(
                    f"{name} {candidate!r} is not an integer from 1 to {own}, the model's own; "
                    f"leave it out, or start from a model with a greater {name}"
                )
        self._check_own(name, candidates, own)

    def _check_ratios(self) -> None:
        candidates = self.candidates.get("mlp_ratio")
        if candidates is None:
            return
        smallest = min(self.candidates.get("embed_dim", [self.embed_dim]))
        hidden = int(self.embed_dim * self.block.mlp_ratio)
        for ratio in candidates:
            if not (int(smallest * ratio) > 0 and int(self.embed_dim * ratio) <= hidden):
                raise ValueError(
                    f"mlp_ratio {ratio!r} makes {int(self.embed_dim * ratio)} hidden features, of "
                    f"{hidden} in the model; leave it out, or start from a model with a "
                    "greater mlp_ratio"
                )
        # A rounded ratio, such as 2.667 for 8/3, stands for the model's own just as well.
        same = [ratio for ratio in candidates if int(self.embed_dim * ratio) == hidden]
        self._check_own("mlp_ratio", candidates, same[0] if same else self.block.mlp_ratio)
        self.block = self.block._replace(mlp_ratio=same[0])

    def _check_own(self, name: str, candidates: Sequence[Any] | None, own: Any) -> None:
        if candidates is not None and own not in candidates:
            raise ValueError(
                f"the candidates of {name}, {', '.join(map(repr, candidates))}, leave out the "
                f"model's own {own!r}: the largest subnet is the model. Add it, or start from a "
                "smaller model"
            )
