"""Architectures and the spaces that they are drawn from."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import Any

import numpy as np

__all__ = [
    "Architecture",
    "Key",
    "SearchSpace",
    "architecture_from_json",
    "architecture_text",
    "candidate_from_json",
    "candidate_text",
    "hashable",
    "is_mixture",
    "key",
    "name_of",
    "plain",
]

Architecture = Mapping[str, Hashable]
"""One subnet: for every choice of the space, its label and the candidate that was chosen."""


Key = frozenset[tuple[str, Hashable]]
"""What `key` gives: hashable, and equal for equal architectures."""


def key(architecture: Architecture) -> Key:
    """Return what an architecture is looked up by, whatever the order of its labels.

    Example:
        >>> key({"depth": 2, "layer1": "conv3"}) == key({"layer1": "conv3", "depth": 2})
        True
    """
    return frozenset(architecture.items())


def is_mixture(architecture: Mapping[str, Any]) -> bool:
    """Return whether weights of candidates are given where one candidate should be chosen.

    Such are a mapping from candidate to weight, a tensor, an array.

    Example:
        >>> is_mixture({"layer1": "conv3"}), is_mixture({"layer1": {"conv3": 0.8, "conv5": 0.2}})
        (False, True)
    """
    return any(isinstance(c, Mapping) or getattr(c, "ndim", 0) > 0 for c in architecture.values())


class SearchSpace:
    """A finite space of subnets: labelled choices, each with its candidates.

    Args:
        choices: label → candidates of that choice, unique within it; their order gives the integer
            encoding. Lists become tuples, and NumPy's numbers plain ones.

    Raises:
        ValueError: no choices, a choice without candidates, one candidate twice, or a candidate
            that is not hashable.

    Example:
        >>> space = SearchSpace({"layer1": ["conv3", "conv5"], "depth": [2, 3, 4]})
        >>> space.size
        6
        >>> space.sample(np.random.default_rng(0))
        {'layer1': 'conv5', 'depth': 3}
    """

    def __init__(self, choices: Mapping[str, Sequence[Hashable]]) -> None:
        if not choices:
            raise ValueError("a search space needs at least one choice; got none")
        self.choices: dict[str, tuple[Hashable, ...]] = {}
        self._index: dict[str, dict[Hashable, int]] = {}
        for label, candidates in choices.items():
            self.choices[label] = tuple(hashable(candidate, label) for candidate in candidates)
            self._index[label] = {c: i for i, c in enumerate(self.choices[label])}
            if not self.choices[label]:
                raise ValueError(f"choice {label!r} has no candidates")
            if len(self._index[label]) != len(self.choices[label]):
                raise ValueError(
                    f"choice {label!r} lists a candidate twice: {_listed(self.choices[label])}"
                )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the definition."""
        return tuple(self.choices)

    @property
    def size(self) -> int:
        """Number of architectures: the product of the numbers of candidates."""
        return math.prod(len(candidates) for candidates in self.choices.values())

    def __iter__(self) -> Iterator[dict[str, Hashable]]:
        """Every architecture, the last label varying fastest."""
        for values in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, values, strict=True))

    def __contains__(self, architecture: Architecture) -> bool:
        return architecture.keys() == self.choices.keys() and all(
            _contains(index, architecture[label]) for label, index in self._index.items()
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and list(self.choices.items()) == list(
            other.choices.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SearchSpace({len(self.choices)} choices, {self.size:,} architectures)"

    def sample(self, generator: np.random.Generator) -> dict[str, Hashable]:
        """Draw every choice uniformly and independently."""
        return {
            label: candidates[generator.integers(len(candidates))]
            for label, candidates in self.choices.items()
        }

    def validate(self, architecture: Architecture) -> None:
        """Check that an architecture chooses one candidate for every label, and nothing else.

        Raises:
            ValueError: names the label, and what it may be.
        """
        for label, index in self._index.items():
            if label not in architecture:
                raise ValueError(
                    f"architecture chooses nothing for {label!r}; "
                    f"candidates are {_listed(self.choices[label])}"
                )
            if not _contains(index, architecture[label]):
                raise ValueError(
                    f"{architecture[label]!r} is not a candidate of {label!r}; "
                    f"candidates are {_listed(self.choices[label])}"
                )
        if len(architecture) != len(self.choices):
            unknown = next(label for label in architecture if label not in self.choices)
            raise ValueError(
                f"architecture has a choice {unknown!r} that the space does not; "
                f"labels are {_listed(self.labels)}"
            )

    def restrict(self, choices: Mapping[str, Sequence[Hashable]]) -> SearchSpace:
        """Return the sub-space in which the given labels have only the given candidates.

        Example:
            >>> SearchSpace({"layer1": ["conv3", "conv5"], "depth": [2, 3]}).restrict(
            ...     {"depth": [3]}
            ... ).choices
            {'layer1': ('conv3', 'conv5'), 'depth': (3,)}
        """
        for label, candidates in choices.items():
            if label not in self.choices:
                raise ValueError(
                    f"the space has no choice {label!r}; labels are {_listed(self.labels)}"
                )
            for candidate in candidates:
                if not _contains(self._index[label], candidate):
                    raise ValueError(
                        f"{candidate!r} is not a candidate of {label!r}; "
                        f"candidates are {_listed(self.choices[label])}"
                    )
        return SearchSpace(self.choices | {k: tuple(v) for k, v in choices.items()})

    def encode(self, architecture: Architecture) -> np.ndarray:
        """Candidate numbers, int64 of shape (choices,), in the order of `labels`."""
        self.validate(architecture)
        return np.array([index[architecture[label]] for label, index in self._index.items()])

    def decode(self, indices: Sequence[int] | np.ndarray) -> dict[str, Hashable]:
        """Return the architecture of candidate numbers: the inverse of `encode`."""
        if len(indices) != len(self.choices):
            raise ValueError(f"expected {len(self.choices)} candidate numbers, got {len(indices)}")
        architecture = {}
        for index, (label, candidates) in zip(indices, self.choices.items(), strict=True):
            if not 0 <= index < len(candidates):
                raise ValueError(
                    f"candidate number {index} of {label!r} is outside 0 … {len(candidates) - 1}"
                )
            architecture[label] = candidates[index]
        return architecture

    def one_hot(self, architecture: Architecture) -> np.ndarray:
        """One-hot encoding, float32 of shape (sum of the numbers of candidates,)."""
        indices = self.encode(architecture)
        widths = [len(candidates) for candidates in self.choices.values()]
        encoding = np.zeros(sum(widths), dtype=np.float32)
        encoding[np.cumsum([0, *widths[:-1]]) + indices] = 1
        return encoding

    def smallest(self, measure: Callable[[Architecture], float]) -> dict[str, Hashable]:
        """Return the architecture with the least `measure`; see `largest`."""
        return self.largest(lambda architecture: -measure(architecture))

    def largest(
        self, measure: Callable[[Architecture], float], restarts: int = 4
    ) -> dict[str, Hashable]:
        """Return the architecture with the greatest `measure`, without enumerating the space.

        Coordinate ascent: each choice in turn takes its best candidate until a pass changes
        nothing, from the first architecture and from `restarts` random ones. Exact where the
        measure is additive over choices, and where every choice has one order of candidates that
        the other choices do not reverse (widths, depths, kernels): parameters and MACs of the
        usual spaces. A measure with other interactions may have a greater maximum elsewhere.

        Costs (restarts + 1) · passes · (sum of the numbers of candidates) evaluations.
        """
        generator = np.random.default_rng(0)
        starts = [self.decode([0] * len(self.choices))]
        starts += [self.sample(generator) for _ in range(restarts)]
        best, best_value = starts[0], -math.inf
        for architecture in starts:
            value, improved = measure(architecture), True
            while improved:
                improved = False
                for label, candidates in self.choices.items():
                    for candidate in candidates:
                        trial = architecture | {label: candidate}
                        trial_value = measure(trial)
                        if trial_value > value:
                            architecture, value, improved = trial, trial_value, True
            if value > best_value:
                best, best_value = architecture, value
        return best


def plain(value: Any) -> Any:
    """Return a scalar of NumPy or torch as Python's, and anything else as it is.

    They equal Python's, but have another text, and torch's another hash. Also within tuples.

    Example:
        >>> plain(np.int64(3)), plain(np.str_("conv3")), plain("conv3")
        (3, 'conv3', 'conv3')
    """
    if type(value) is tuple:
        return tuple(map(plain, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value


def hashable(value: Any, label: str) -> Hashable:
    """Return a candidate as it can be looked up: lists as tuples, NumPy's numbers as plain ones.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(value, list | tuple):
        return tuple(hashable(element, label) for element in value)
    value = plain(value)
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"candidate {value!r} of {label!r} is a {type(value).__name__}, which is not hashable; "
            "give a name or a number for it, or a tuple"
        ) from None
    return value  # type: ignore[no-any-return]


def _contains(index: Mapping[Hashable, int], candidate: Any) -> bool:
    try:
        return candidate in index
    except TypeError:  # an unhashable value, such as a list, is no candidate
        return False


def _listed(values: Sequence[Any], limit: int = 8) -> str:
    shown = ", ".join(repr(value) for value in values[:limit])
    return shown + (f", … ({len(values)} in all)" if len(values) > limit else "")


def candidate_text(candidate: Hashable) -> str:
    """Return a candidate as text that is the same in every process.

    That is `repr` without addresses, and with the elements of a frozenset in order.
    """
    if type(candidate) in (frozenset, tuple) and candidate:
        texts = [candidate_text(element) for element in candidate]  # type: ignore[attr-defined]
        if isinstance(candidate, frozenset):
            return f"frozenset({{{', '.join(sorted(texts))}}})"
        return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(candidate))


def candidate_from_json(value: Any) -> Hashable:
    """Return the candidate that was written as JSON, which has lists for tuples."""
    return tuple(map(candidate_from_json, value)) if isinstance(value, list) else value


def architecture_from_json(content: Mapping[str, Any]) -> dict[str, Hashable]:
    """Return the architecture that was written as JSON, which has lists for tuples."""
    return {label: candidate_from_json(value) for label, value in content.items()}


def architecture_text(architecture: Architecture) -> str:
    """Return the choices as text, without what all labels begin with."""
    prefix = commonprefix(list(architecture)) if len(architecture) > 1 else ""  # noqa: RUF071
    return ", ".join(f"{label[len(prefix) :]} {value}" for label, value in architecture.items())


def name_of(function: Any) -> str:
    """Return the name of a callable, or of its class, for comparison between runs.

    Without the module, which is `__main__` in a script and another where that is imported.
    """
    named = function if hasattr(function, "__qualname__") else type(function)
    return named.__qualname__
