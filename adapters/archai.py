"""Archai 1.0: its config spaces as search spaces, and its searches over a trained supernet.

Its `PlTrainer` is Lightning's `Trainer`, and trains by `nas_dynamic.adapters.lightning`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from torch import nn

from nas_dynamic._extras import extra
from nas_dynamic.complexity import Complexity
from nas_dynamic.evaluation import Score, score_subnets
from nas_dynamic.evaluation.inference import Batches
from nas_dynamic.space import Architecture, Key, SearchSpace, key

with extra("archai"):
    from archai.discrete_search.api import ArchaiModel, ModelEvaluator
    from archai.discrete_search.search_spaces.config import (
        ArchConfig,
        ArchParamTree,
        ConfigSearchSpace,
        DiscreteChoice,
    )
    from archai.discrete_search.search_spaces.config.arch_config import (
        ArchConfigList,
        build_arch_config,
    )
    from archai.discrete_search.search_spaces.config.utils import replace_ptree_choices
    from overrides import overrides

__all__ = [
    "ComplexityEvaluator",
    "SupernetEvaluator",
    "from_param_tree",
    "supernet_search_space",
    "to_architecture",
    "to_config",
]


def from_param_tree(tree: ArchParamTree) -> SearchSpace:
    """Return the choices of an Archai tree: the path of each, with dots, and its candidates.

    A `DiscreteChoice` that stands at several places is one choice, labelled by the first. Its
    probabilities are left to Archai's own sampling. Blocks that `repeat_config` may leave out have
    labels all the same, and `_repeat_times` says how many there are.

    Example:
        >>> tree = ArchParamTree({"stem": {"kernel": DiscreteChoice([3, 5])}, "width": 8})
        >>> from_param_tree(tree).choices
        {'stem.kernel': (3, 5)}
    """
    return SearchSpace({label: choice.choices for label, choice in _choices(tree).items()})


def to_architecture(tree: ArchParamTree, config: ArchConfig) -> dict[str, Hashable]:
    """Return what a config of a tree chooses."""
    values = dict(_flat(config.to_dict()))
    return {label: values[label] for label in _choices(tree)}


def to_config(tree: ArchParamTree, architecture: Architecture) -> ArchConfig:
    """Return an architecture as the config that Archai's models are built from."""
    labels = {id(choice): label for label, choice in _choices(tree).items()}
    return build_arch_config(
        replace_ptree_choices(tree.to_dict(), lambda choice: architecture[labels[id(choice)]])
    )


def supernet_search_space(tree: ArchParamTree, seed: int | None = None) -> ConfigSearchSpace:
    """Return the space of a tree for Archai's searches; its models hold no network.

    What a model is scored by is `SupernetEvaluator`. Searches that save weights have to be told
    not to: `EvolutionParetoSearch(…, save_pareto_model_weights=False)`.
    """
    return ConfigSearchSpace(_Subnet, tree, seed=seed, model_kwargs={"tree": tree})


class SupernetEvaluator(ModelEvaluator):
    """Scores the models of Archai's searches with the weights that they inherit from a supernet.

    For `SearchObjectives.add_objective` with models of `supernet_search_space`. No subnet is scored
    twice, so make a new one after further training. Weights and buffers of the supernet stay as
    they are; the active subnet is the one that was scored last.

    Args:
        supernet: trained; has `activate(architecture)`.
        batches: (images, labels) to score on.
        reward: of a score; its accuracy by default.
        options: those of `nas_dynamic.evaluation.score_subnets`, such as `calibration`.
    """

    def __init__(
        self,
        supernet: nn.Module,
        batches: Batches,
        *,
        reward: Callable[[Score], float] = lambda score: score.accuracy,
        **options: Any,
    ) -> None:
        self.supernet, self.batches, self.reward = supernet, list(batches), reward
        self.options = options
        self._scores: dict[Key, Score] = {}

    @overrides  # type: ignore[untyped-decorator]
    def evaluate(self, arch: ArchaiModel, budget: float | None = None) -> float:
        """Return the reward of a model.

        Raises:
            ValueError: there is a budget, as of `SuccessiveHalvingSearch`: nothing is trained.
        """
        if budget is not None:
            raise ValueError(
                f"a subnet with inherited weights is scored without training, whatever the budget "
                f"of {budget}; use a search without budgets, such as EvolutionParetoSearch"
            )
        subnet = _architecture(arch)
        if key(subnet) not in self._scores:
            scores = score_subnets(self.supernet, _activate, [subnet], self.batches, **self.options)
            (self._scores[key(subnet)],) = scores
        return self.reward(self._scores[key(subnet)])


class ComplexityEvaluator(ModelEvaluator):
    """Measures the models of Archai's searches by a complexity, such as a table of parameters."""

    def __init__(self, complexity: Complexity) -> None:
        self.complexity = complexity

    @overrides  # type: ignore[untyped-decorator]
    def evaluate(self, arch: ArchaiModel, budget: float | None = None) -> float:
        """Return the complexity of a model."""
        return self.complexity(_architecture(arch))


class _Subnet:
    """What Archai calls a model: an architecture, whose weights are the supernet's."""

    def __init__(self, config: ArchConfig, tree: ArchParamTree) -> None:
        _use(config)
        self.architecture = to_architecture(tree, config)


def _activate(supernet: Any, architecture: Architecture) -> None:
    supernet.activate(architecture)


def _architecture(model: ArchaiModel) -> Architecture:
    if not isinstance(model.arch, _Subnet):
        raise TypeError(
            f"{type(model.arch).__name__} is no subnet of the supernet: search in "
            "supernet_search_space(tree)"
        )
    return model.arch.architecture


def _choices(tree: ArchParamTree) -> dict[str, DiscreteChoice]:
    return tree.to_dict(flatten=True, deduplicate_params=True, remove_constants=True)  # type: ignore[no-any-return]


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _use(config: ArchConfig) -> None:
    """Pick all that a network of this config would, by which Archai tells architectures apart."""
    if isinstance(config, ArchConfigList):
        for block in config:  # as many as are repeated
            _use(block)
        return
    for name, node in config.nodes.items():
        config.pick(name)
        if isinstance(node, ArchConfig):
            _use(node)
