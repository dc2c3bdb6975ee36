"""NNI model spaces as search spaces, and their samples as architectures."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from nni.mutable import Categorical, CategoricalMultiple, Sample
from nni.mutable.annotation import Constraint
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation

from nas_dynamic.space import Architecture, SearchSpace, hashable

__all__ = ["activate", "architecture_of", "mixed_arguments", "sample_of", "search_space"]

_LABELS: weakref.WeakKeyDictionary[ModelSpace, _Labels] = weakref.WeakKeyDictionary()
"""What `_labels_of` has found: the walk takes as long as an activation, up to 100 ms."""


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


def architecture_of(sample: Mapping[str, Any], model_space: ModelSpace) -> dict[str, Hashable]:
    """Return the architecture of an NNI sample; of several values at once a sorted tuple."""
    multiple = _labels_of(model_space).multiple
    return {
        str(label): tuple(sorted(value))
        if label in multiple and isinstance(value, list)
        else hashable(value, str(label))
        for label, value in sample.items()
    }


def sample_of(architecture: Architecture, model_space: ModelSpace) -> Sample:
    """Return NNI's sample of an architecture: the inverse of `architecture_of`.

    Choices of several values are lists; a candidate that is a tuple by itself stays one, and one
    that is a list is NNI's own.
    """
    labels = _labels_of(model_space)
    return {
        label: list(value)
        if label in labels.multiple and isinstance(value, tuple)
        else labels.lists.get((label, value), value)
        for label, value in architecture.items()
    }


class _Labels(NamedTuple):
    """What samples have in another form than architectures."""

    multiple: frozenset[str]
    """Labels of the choices of several values at once."""
    lists: dict[tuple[str, Hashable], Any]
    """Label and candidate → NNI's candidate, of those that are lists."""


def _labels_of(model_space: ModelSpace) -> _Labels:
    if model_space not in _LABELS:
        mutables = {str(label): m for label, m in model_space.simplify().items()}
        _LABELS[model_space] = _Labels(
            frozenset(k for k, m in mutables.items() if isinstance(m, CategoricalMultiple)),
            {
                (label, hashable(value, label)): value
                for label, mutable in mutables.items()
                if isinstance(mutable, Categorical)
                for value in mutable.values
                if isinstance(value, list)
            },
        )
    return _LABELS[model_space]


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
