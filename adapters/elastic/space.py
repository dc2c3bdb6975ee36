"""The choices of an elastic transformer, and the sizes that an architecture stands for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["ATTENTIONS", "BlockSpace"]

ATTENTIONS = ("softmax", "linear")
"""Kinds of attention of a block, on the same parameters."""

Shape = TypeVar("Shape", bound=Any)
"""A NamedTuple of what can be elastic in one block, `heads` and `attention` among it."""


class BlockSpace(SearchSpace, Generic[Shape]):
    """A search space of depth, of a width of the tokens, and of the shape of each block.

    Args:
        width_label: what the width of the tokens is called.
        width: of the model.
        depth: of the model.
        block: the shape of the model's blocks.
        head_dim: width of a head.
        candidates: of `depth`, of the width, and of each layer's shape, by name.
        per_layer: one choice for each layer, or one for all.

    Raises:
        ValueError: candidates that the model cannot be sliced to, or that leave out its own value.
        TypeError: candidates that are no list.
    """

    def __init__(
        self,
        width_label: str,
        width: int,
        depth: int,
        block: Shape,
        head_dim: int,
        candidates: Mapping[str, Sequence[Any]],
        per_layer: bool,
    ) -> None:
        self.width_label, self.width, self.depth = width_label, width, depth
        self.block: Shape = block
        self.head_dim = head_dim
        for name, values in candidates.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise TypeError(f"{name} is {values!r}; give a list of candidates, [{values!r}, …]")
        self.candidates = {name: tuple(values) for name, values in candidates.items()}
        # Heads without candidates follow the width where they do so in the model.
        self.heads_follow = "heads" not in candidates and block.heads * head_dim == width
        self._check_candidates()
        self.layer_labels = [
            {
                name: f"{name}{layer + 1}" if per_layer else name
                for name in block._fields
                if name in candidates
            }
            for layer in range(depth)
        ]
        choices = {k: self.candidates[k] for k in ("depth", width_label) if k in candidates}
        for labels in self.layer_labels:
            choices |= {label: self.candidates[name] for name, label in labels.items()}
        super().__init__(choices)

    @property
    def base(self) -> dict[str, Hashable]:
        """The architecture of the model itself, the largest one."""
        own: dict[str, Any] = {"depth": self.depth, self.width_label: self.width}
        for labels in self.layer_labels:
            own |= {label: getattr(self.block, name) for name, label in labels.items()}
        return {label: own[label] for label in self.labels}

    def shape(self, architecture: Architecture) -> tuple[int, list[Shape]]:
        """Return the width of the tokens and the active blocks of an architecture of the space."""
        sizes: Mapping[str, Any] = architecture
        width = sizes.get(self.width_label, self.width)
        own = self.block
        if self.heads_follow:
            own = own._replace(heads=width // self.head_dim)
        return width, [
            own._replace(**{name: sizes[label] for name, label in labels.items()})
            for labels in self.layer_labels[: sizes.get("depth", self.depth)]
        ]

    def _check_candidates(self) -> None:
        candidates, label = self.candidates, self.width_label
        self._check_sizes("depth", candidates.get("depth"), self.depth)
        self._check_sizes(label, candidates.get(label), self.width)
        self._check_sizes("heads", candidates.get("heads"), self.block.heads)
        for attention in candidates.get("attention", ()):
            if attention not in ATTENTIONS:
                raise ValueError(
                    f"attention {attention!r} is unknown; choose from {', '.join(ATTENTIONS)}"
                )
        self._check_own("attention", candidates.get("attention"), "softmax")
        for width in candidates.get(label, ()):
            if self.heads_follow and width % self.head_dim:
                below = width // self.head_dim * self.head_dim
                raise ValueError(
                    f"{label} {width} does not divide into heads of width {self.head_dim}; "
                    f"take {below or below + self.head_dim}, or give candidates of heads, which "
                    "then need not fill the embedding"
                )

    def _check_sizes(self, name: str, candidates: Sequence[Any] | None, own: int) -> None:
        for candidate in candidates or ():
            if not isinstance(candidate, int) or not 0 < candidate <= own:
                raise ValueError(
                    f"{name} {candidate!r} is not an integer from 1 to {own}, the model's own; "
                    f"leave it out, or start from a model with a greater {name}"
                )
        self._check_own(name, candidates, own)

    def _check_own(self, name: str, candidates: Sequence[Any] | None, own: Any) -> None:
        if candidates is not None and own not in candidates:
            raise ValueError(
                f"the candidates of {name}, {', '.join(map(repr, candidates))}, leave out the "
                f"model's own {own!r}: the largest subnet is the model. Add it, or start from a "
                "smaller model"
            )
