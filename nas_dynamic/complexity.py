"""Complexity of a subnet: parameters, MACs, latency; tables that look it up in microseconds."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_dynamic.complexity_scale import checked_complexity
from nas_dynamic.evaluation.inference import evaluation_mode
from nas_dynamic.sampling import Sampler, UniformSampler
from nas_dynamic.space import Architecture, Key, SearchSpace, candidate_from_json, key

__all__ = [
    "AdditiveTable",
    "Bounds",
    "CachedComplexity",
    "Complexity",
    "LookupTable",
    "bounds",
    "count_macs",
    "count_parameters",
    "lookup",
    "measure_latency",
    "population",
]

Complexity = Callable[[Architecture], float]
"""Architecture → its complexity, in any unit."""


def count_parameters(model: nn.Module, *inputs: Any) -> int:
    """Count trainable parameters.

    Args:
        model: a stand-alone subnet; or a supernet with one subnet activated.
        inputs: example inputs. With them only parameters that the output depends on, in
            evaluation mode, count, so that a supernet gives the count of its active subnet. A
            parameter that the subnet uses a slice of counts whole: such spaces need the
            stand-alone subnet.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not inputs or not parameters:
        return sum(p.numel() for p in parameters)
    with evaluation_mode(model), torch.enable_grad():
        leaves = filter(torch.is_tensor, torch.utils._pytree.tree_leaves(model(*inputs)))
        outputs = [tensor.sum() for tensor in leaves if tensor.requires_grad]
        gradients = torch.autograd.grad(outputs, parameters, allow_unused=True)
    return sum(
        parameter.numel()
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    )


def count_macs(model: nn.Module, *inputs: Any) -> float:
    """Count multiply-accumulates of one forward pass: half of torch's flop count.

    That is what torch's flop registry knows (convolutions, matrix products, attention). Model and
    inputs may lie on the meta device, where nothing is computed; on CPU fused attention is not
    counted.
    """
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return float(counter.get_total_flops() / 2)


def measure_latency(model: nn.Module, *inputs: Any, seconds: float = 0.2) -> float:
    """Return the median wall time of one forward pass in evaluation mode, in milliseconds.

    Measured by `torch.utils.benchmark`, which synchronises accelerators, on the device and with
    the number of threads that are set, for at least `seconds`.
    """
    from torch.utils.benchmark import Timer

    with evaluation_mode(model), torch.inference_mode():
        timer = Timer(
            "model(*inputs)",
            globals={"model": model, "inputs": inputs},
            num_threads=torch.get_num_threads(),
        )
        return float(timer.blocked_autorange(min_run_time=seconds).median * 1e3)


class LookupTable(ABC):
    """A complexity that is looked up in a table; it may differ from what the table stands for."""

    @abstractmethod
    def __call__(self, architecture: Architecture) -> float:
        """Look the complexity up."""

    def errors(
        self, space: SearchSpace, complexity: Complexity, samples: int = 32, seed: int = 0
    ) -> np.ndarray:
        """Return errors, table / complexity − 1, on random architectures; shape (samples,).

        Raises:
            ValueError: a complexity is not a positive finite number.
        """
        generator = np.random.default_rng(seed)
        drawn = [space.sample(generator) for _ in range(samples)]
        return np.array([self(a) / checked_complexity(complexity, a) - 1 for a in drawn])


class AdditiveTable(LookupTable):
    """Complexity as a constant plus one term for each choice: a look-up of a few microseconds.

    Args:
        constant: what all subnets share.
        terms: label → candidate → what that candidate adds. Any unit, one for all.
        shared: what candidates of several choices share, such as tied weights: an amount, and the
            (label, candidate) pairs of which any one adds it, once.
    """

    def __init__(
        self,
        constant: float,
        terms: Mapping[str, Mapping[Hashable, float]],
        shared: Iterable[tuple[float, Collection[tuple[str, Hashable]]]] = (),
    ) -> None:
        self.constant = constant
        self.terms = {label: dict(candidates) for label, candidates in terms.items()}
        self.shared = [(amount, tuple(users)) for amount, users in shared]

    @classmethod
    def measure(cls, space: SearchSpace, complexity: Complexity) -> AdditiveTable:
        """Measure terms on the first architecture and its one-choice neighbours.

        Costs 1 + (sum over choices of the number of candidates − 1) complexities.
        """
        base = space.decode([0] * len(space.labels))
        constant = complexity(base)
        terms = {
            label: {
                candidate: complexity(base | {label: candidate}) - constant if i else 0.0
                for i, candidate in enumerate(candidates)
            }
            for label, candidates in space.choices.items()
        }
        return cls(constant, terms)

    def __call__(self, architecture: Architecture) -> float:
        """Look the complexity up."""
        try:
            total = sum(
                [term[architecture[label]] for label, term in self.terms.items()], self.constant
            )
        except KeyError as error:
            raise ValueError(
                f"the table has no entry for {error.args[0]!r} of architecture "
                f"{dict(architecture)}; it was made for the labels {', '.join(self.terms)}"
            ) from None
        for amount, users in self.shared:
            if any(architecture[label] == candidate for label, candidate in users):
                total += amount
        return total

    def __repr__(self) -> str:
        return f"AdditiveTable({len(self.terms)} choices)"

    def save(self, path: str | Path) -> None:
        """Write the table as JSON. Candidates are saved as JSON values: tuples become lists."""
        rows = {label: [[c, t] for c, t in term.items()] for label, term in self.terms.items()}
        content: dict[str, Any] = {"constant": self.constant, "terms": rows}
        if self.shared:
            content["shared"] = self.shared
        Path(path).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> AdditiveTable:
        """Read a table that `save` wrote, or one of that form that was measured elsewhere."""
        try:
            content = json.loads(Path(path).read_text())
            terms = {
                label: {candidate_from_json(candidate): float(term) for candidate, term in rows}
                for label, rows in content["terms"].items()
            }
            shared = [
                (float(amount), [(label, candidate_from_json(c)) for label, c in users])
                for amount, users in content.get("shared", ())
            ]
            return cls(float(content["constant"]), terms, shared)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is no complexity table, "
                '{"constant": number, "terms": {label: [[candidate, number], …]}}: '
                f"{error!r}"
            ) from error


class CachedComplexity:
    """A complexity that is computed once for each architecture and then looked up."""

    def __init__(self, space: SearchSpace, complexity: Complexity) -> None:
        self.labels = space.labels
        self.complexity = complexity
        self._values: dict[Key, float] = {}

    def __call__(self, architecture: Architecture) -> float:
        """Look the complexity up, or compute and keep it."""
        looked_up = key({label: architecture[label] for label in self.labels})
        value = self._values.get(looked_up)
        if value is None:
            value = self._values[looked_up] = self.complexity(architecture)
        return value

    def __repr__(self) -> str:
        return f"CachedComplexity({len(self._values)} architectures)"


def lookup(
    space: SearchSpace, complexity: Complexity, *, samples: int = 32, seed: int = 0
) -> AdditiveTable | CachedComplexity:
    """Return the fastest look-up of a complexity that is exact.

    An `AdditiveTable` if it agrees with the complexity on `samples` random architectures to one
    part in 10⁹, else a `CachedComplexity`; the type of the result says which.

    Raises:
        ValueError: the complexity of one of these is not a positive finite number.
    """
    table = AdditiveTable.measure(space, complexity)
    exact = np.abs(table.errors(space, complexity, samples, seed)).max() < 1e-9
    return table if exact else CachedComplexity(space, complexity)


class Bounds(NamedTuple):
    """The least and the greatest complexity of a space."""

    min: float
    max: float


def bounds(space: SearchSpace, complexity: Complexity) -> Bounds:
    """Find the complexity of the smallest and the largest subnet, without enumerating the space.

    See `SearchSpace.largest` for the search and for when it is exact.

    Raises:
        ValueError: one of the two is not a positive finite number.
    """
    return Bounds(
        checked_complexity(complexity, space.smallest(complexity)),
        checked_complexity(complexity, space.largest(complexity)),
    )


def population(
    space: SearchSpace,
    complexity: Complexity,
    *,
    sampler: Sampler | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> list[float]:
    """Return complexities of subnets as a training samples them, for `CaLR(population=…)`.

    Args:
        space: the search space.
        complexity: of an architecture.
        sampler: what draws the subnets of the training; its state is put back. Uniform by
            default: then all subnets of a space of no more than `samples` are taken, once each.
        samples: number of subnets; more where the last step of the sampler gives more.
        seed: of the default sampler.

    Raises:
        ValueError: the sampler drew what is not of the space.
    """
    if sampler is None:
        if space.size <= samples:
            return [complexity(architecture) for architecture in space]
        sampler = UniformSampler(space, seed)
    state = copy.deepcopy(sampler.state_dict())
    complexities: list[float] = []
    try:
        while len(complexities) < samples:
            drawn = sampler.sample()
            for subnet in [drawn] if isinstance(drawn, Mapping) else drawn:
                space.validate(subnet)
                complexities.append(complexity(subnet))
    finally:
        sampler.load_state_dict(state)
    return complexities
