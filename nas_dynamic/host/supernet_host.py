"""A host that draws the subnets itself, for frameworks that train a model and know no subnets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.attach.innermost import innermost
from nas_dynamic.complexity import Complexity, LookupTable, lookup
from nas_dynamic.host.options import Options
from nas_dynamic.host.sampling_state import attach_with_sampling
from nas_dynamic.host.seam import Host
from nas_dynamic.sampling import Sampler, UniformSampler
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["SupernetHost", "find_supernet"]


class SupernetHost(Host):
    """Draws the subnets of each update from a seeded sampler, and has the supernet compute them.

    The state of the sampling is in `optimizer.state_dict()`, beside that of dynamic training, so
    that what saves and loads the optimizer resumes exactly. The sampler is the same on all ranks.

    Args:
        supernet: a module with `space`, a `SearchSpace`, and `activate(architecture)`, which
            makes it compute a subnet. `subnet_parameters()` and `subnet_macs()` return
            architecture → complexity, for `complexity="parameters"` and `"macs"`.
        optimizer: of its weights.
        total_steps: () → number of updates of the whole training, asked for when the training
            starts; None if it has no end.
        sampler: draws the subnet, or the subnets, of each update; `UniformSampler` by default. To
            resume, give a new one of the same seed: γ by rank depends on what it draws first.
        seed: of the default sampler.
        has_scheduler: whether an lr scheduler sets the optimizer's lr; None if that is not known.

    Attributes:
        training: the `DynamicTraining`; there from `start` on.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> net.space, net.activate = SearchSpace({"width": [1, 2]}), lambda architecture: None
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> host = SupernetHost(net, optimizer, lambda: 10)
        >>> host.start(Options(complexity=lambda architecture: architecture["width"]))
        >>> host.draw()
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> host.training.updates, host.training.last.architecture
        (1, {'width': 2})
    """

    training: DynamicTraining
    undrawn = "call draw() before the forward pass of each update"
    """What to do about an update whose subnet was not drawn."""

    def __init__(
        self,
        supernet: Any,
        optimizer: torch.optim.Optimizer,
        total_steps: Callable[[], int | None] = lambda: None,
        *,
        sampler: Sampler | None = None,
        seed: int = 0,
        has_scheduler: bool | None = None,
    ) -> None:
        self.supernet = supernet
        self._has_scheduler = has_scheduler
        self.optimizer = innermost(optimizer)
        self.space: SearchSpace = supernet.space
        self.seed = seed
        self.multi_subnet = sampler is not None and _draws_several(sampler)
        self._total_steps = total_steps
        self._given_sampler = sampler
        self._sampler = UniformSampler(self.space, seed) if sampler is None else sampler
        self._subnets: Sequence[Architecture] = ()
        self._drawn_for: int | None = None
        self._weighted_for: int | None = None
        self._ends: list[Callable[[], None]] = []

    def start(self, options: Options) -> None:
        """Attach dynamic training, and keep the sampling in the optimizer's checkpoints.

        Raises:
            ValueError: an option does not suit the host, or the optimizer cannot be attached to.
        """
        self.training, end = attach_with_sampling(self, options, self)
        self._ends = [end]

    def on_stop(self, end: Callable[[], None]) -> None:
        """Have `stop` undo one more thing, before those that were done before it."""
        self._ends.insert(0, end)

    def stop(self) -> None:
        """Leave a plain optimizer. The supernet computes the subnet that it computed last."""
        for end in self._ends:
            end()
        self._ends = []

    def draw(self) -> None:
        """Have the supernet compute the subnet of this update, which the first call draws.

        A step that a GradScaler skips is no update: its subnet is tried again.
        """
        if self._drawn_for != self.training.turn:
            drawn = self._sampler.sample()
            self._subnets = [drawn] if isinstance(drawn, Mapping) else list(drawn)
            self._drawn_for = self.training.turn
        if not self.multi_subnet:
            self._compute(self._subnets[0])

    def weighted_subnets(self) -> Iterator[float]:
        """Have the supernet compute each subnet of this update in turn; yield its loss's weight.

        For updates of several subnets:

            loss = sum(w * loss_of(supernet(images), labels) for w in host.weighted_subnets())
        """
        self.draw()
        weights = self.training.loss_weights(self._subnets)
        for subnet, weight in zip(self._subnets, weights, strict=True):
            self._compute(subnet)
            yield weight
        self._weighted_for = self.training.turn

    def has_scheduler(self) -> bool | None:
        """Return whether an lr scheduler sets the optimizer's lr, as was given."""
        return self._has_scheduler

    def sampled(self) -> Sequence[Architecture]:
        """Return the subnets of this update.

        Raises:
            RuntimeError: they were not drawn, or not computed.
        """
        if self._drawn_for != self.training.turn:
            raise RuntimeError(f"no subnet has been drawn for this update: {self.undrawn}")
        if self.multi_subnet and self._weighted_for != self.training.turn:
            raise RuntimeError(
                f"the sampler drew {len(self._subnets)} subnets for this update, and the loss took "
                "one forward pass: sum the losses of `for weight in ….weighted_subnets()`, or give "
                "a sampler of one subnet an update"
            )
        return self._subnets

    def complexity(self, measure: Literal["parameters", "macs"]) -> Complexity:
        """Return a look-up in what the supernet says of its subnets."""
        method = getattr(self.supernet, f"subnet_{measure}", None)
        if method is None:
            raise ValueError(
                f"complexity={measure!r} needs {type(self.supernet).__name__}.subnet_{measure}(), "
                "which returns architecture → number; or give complexity=, a function of an "
                "architecture"
            )
        told: Complexity = method()
        return told if isinstance(told, LookupTable) else lookup(self.space, told)

    def total_steps(self) -> int | None:
        """Return the number of updates of the whole training."""
        return self._total_steps()

    def sampler(self) -> Sampler | None:
        """Return the sampler that was given; the default one draws uniformly."""
        return self._given_sampler

    def _compute(self, subnet: Architecture) -> None:
        self.supernet.activate(subnet)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampling."""
        # Subnets by their numbers: candidates may be of classes that no checkpoint loads.
        return {
            "sampler": self._sampler.state_dict(),
            "subnets": [self.space.encode(subnet).tolist() for subnet in self._subnets],
            "drawn_for": self._drawn_for,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        subnets = [self.space.decode(numbers) for numbers in state["subnets"]]
        self._sampler.load_state_dict(state["sampler"])
        self._subnets, self._drawn_for = subnets, state["drawn_for"]


def find_supernet(
    model: nn.Module, optimizers: Sequence[Any]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the supernet in a model, and the optimizer that updates its weights.

    A supernet is a module with `space`, a `SearchSpace`, and a method `activate`: the model itself
    or a part of it. Copies that no optimizer updates, such as an EMA model, do not count.

    Raises:
        ValueError: there is none, or there are several of either; the message names them.
    """
    owned = [(o, {p for g in o.param_groups for p in g["params"]}) for o in optimizers]
    found: list[tuple[str, nn.Module, list[Any]]] = []
    inside: set[nn.Module] = set()
    for path, part in model.named_modules():
        space = getattr(part, "space", None)
        if part in inside or not isinstance(space, SearchSpace) or not hasattr(part, "activate"):
            continue
        inside.update(part.modules())
        weights = {*part.parameters()}
        updating = [optimizer for optimizer, parameters in owned if parameters & weights]
        if updating:
            found.append((path or type(part).__name__, part, updating))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no supernet that the optimizer updates: a module with "
            "`space`, a nas_dynamic.SearchSpace, and `activate(architecture)`"
        )
    if len(found) > 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} supernets, {', '.join(f[0] for f in found)}; "
            "give one module a `space` of all choices and an `activate` for them"
        )
    path, supernet, updating = found[0]
    if len(updating) > 1:
        names = ", ".join(type(optimizer).__name__ for optimizer in updating)
        raise ValueError(
            f"{len(updating)} optimizers update the supernet {path}: {names}; give its weights to "
            "one optimizer, in several param groups"
        )
    return supernet, innermost(updating[0])


def _draws_several(sampler: Sampler) -> bool:
    """Return whether a sampler draws several subnets an update; its state is put back."""
    state = copy.deepcopy(sampler.state_dict())
    try:
        return not isinstance(sampler.sample(), Mapping)
    finally:
        sampler.load_state_dict(state)
