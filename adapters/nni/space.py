"""NNI model spaces as search spaces, and their samples as architectures."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from nni.mutable import Categorical, CategoricalMultiple, Sample
from nni.mutable.annotation import Constraint
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation

from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["activate", "architecture_of", "mixed_arguments", "sample_of", "search_space"]

_MULTIPLE: weakref.WeakKeyDictionary[ModelSpace, frozenset[str]] = weakref.WeakKeyDictionary()
"""What `_multiple` has found: the walk takes as long as an activation, up to 100 ms."""


def search_space(model_space: ModelSpace) -> SearchSpace:
    """Return the choices of an NNI model space, mutated into a supernet or not.

    A choice of several values at once (`CategoricalMultiple`) has tuples as candidates.
    Constraints are left to NNI's sampling.

    Raises:
        TypeError: a choice is not finite.
    """
    choices: dict[str, Sequence[Hashable]] = {}
    for nni_label, mutable in model_space.simplify().items():
        label = str(nni_label)  # NNI's labels are of a subclass, which safe unpickling refuses
        if isinstance(mutable, Categorical):
            choices[label] = mutable.values
        elif isinstance(mutable, CategoricalMultiple):
            values = list(mutable.values)
            sizes = range(len(values) + 1) if mutable.n_chosen is None else [mutable.n_chosen]
            choices[label] = [c for n in sizes for c in itertools.combinations(values, n)]
        elif not isinstance(mutable, Constraint):
            raise TypeError(
                f"choice {label!r} is a {type(mutable).__name__}; a supernet's choices must be "
                "finite: Categorical or CategoricalMultiple"
            )
    return SearchSpace(choices)


def architecture_of(sample: Mapping[str, Any]) -> dict[str, Hashable]:
    """Return the architecture of an NNI sample: lists become sorted tuples."""
    return {
        str(label): tuple(sorted(value)) if isinstance(value, list) else value
        for label, value in sample.items()
    }


def sample_of(architecture: Architecture, model_space: ModelSpace) -> Sample:
    """Return NNI's sample of an architecture: the inverse of `architecture_of`.

    Choices of several values are lists; a candidate that is a tuple by itself stays one.
    """
    multiple = _multiple(model_space)
    return {
        label: list(value) if label in multiple and isinstance(value, tuple) else value
        for label, value in architecture.items()
    }


def _multiple(model_space: ModelSpace) -> frozenset[str]:
    """Return the labels of the choices of several values at once."""
    if model_space not in _MULTIPLE:
        _MULTIPLE[model_space] = frozenset(
            str(label)
            for label, mutable in model_space.simplify().items()
            if isinstance(mutable, CategoricalMultiple)
        )
    return _MULTIPLE[model_space]


def activate(supernet: ModelSpace, architecture: Architecture) -> None:
    """Make the supernet compute one subnet, until the next activation or sampling."""
    sample = sample_of(architecture, supernet)
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(memo=sample)


def mixed_arguments(module: MixedOperation, sample: Sample) -> dict[str, Any]:
    """Return what a sliced layer is made with in one subnet."""
    chosen = {name: e.freeze(sample) for name, e in module.mutable_arguments.items()}
    return {**module.init_arguments, **chosen}
