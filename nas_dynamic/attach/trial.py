"""A few updates of a small copy of an optimizer: whether groups can have a state of their own.

What an optimizer keeps, and where, is seen by what it does and not known by its name.
"""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nas_dynamic.attach.copies import bare_copy
from nas_dynamic.attach.group_states import SCHEDULED, GroupStates
from nas_dynamic.attach.intercept import INTERCEPTED

__all__ = ["Trial", "try_updates"]

SEQUENCE = "abaacb"
"""Momentum groups of the updates."""

LR, SHRUNK = 0.01, 3
SEED = 2503  # of weights; gradients have small ones, and must not be equal to weights


@dataclass(frozen=True, slots=True)
class Trial:
    """What the updates of a small copy have shown.

    Attributes:
        failure: why it could not be tried; empty if it was. Then nothing else is known.
        closures: evaluations of the closure in one step, if it needs one.
        separates: whether each group comes out as by an optimizer of its own.
        weights: the entry of its state that is a copy of the weights; empty if there is none.
        uses_lr: whether it updates by the lr of `param_groups`.
        state_share: size of the state, in bytes, as a share of that of the parameters.
    """

    failure: str = ""
    closures: int = 0
    separates: bool = True
    weights: str = ""
    uses_lr: bool = True
    state_share: float = 0.0


_known: dict[Any, Trial] = {}


def try_updates(optimizer: torch.optim.Optimizer) -> Trial:
    """Return what some updates of small copies of an optimizer show; it stays as it is."""
    key = _key(optimizer)
    if key is None or key not in _known:
        trial = _try_updates(optimizer)
        if key is None:
            return trial
        _known[key] = trial
    return _known[key]


def _try_updates(optimizer: torch.optim.Optimizer) -> Trial:
    failures = []
    for give in (_dense, _with_graph, _sparse):
        try:
            with _quiet(optimizer):
                return _tried(_Workshop(optimizer, give))
        except Exception as error:  # whatever it raises at gradients that it cannot take
            failures.append(f"{type(error).__name__}: {f'{error}'.partition(chr(10))[0][:120]}")
    return Trial(failure=failures[0])


def _key(optimizer: torch.optim.Optimizer) -> Any:
    """Return what decides a trial; None if that may be in attributes of the object."""
    plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(()))])
    if vars(optimizer).keys() - vars(plain).keys() - {*INTERCEPTED, "_opt_called"}:
        return None
    groups = [
        (
            sorted((k, repr(v)) for k, v in group.items() if k not in SCHEDULED),
            sorted({(p.dim(), str(p.dtype), str(p.device)) for p in group["params"]}),
        )
        for group in optimizer.param_groups
    ]
    return type(optimizer), repr(groups)


def _tried(workshop: _Workshop) -> Trial:
    moved, weights, state_share = _alone(workshop, 1.0)
    moved_less, *_ = _alone(workshop, 1e-3)
    return Trial(
        separates=_separates(workshop),
        weights=weights,
        # One that has not moved yet, such as in a warm-up of its own, may use it later.
        uses_lr=not any(m.any() for m in moved)
        or any(not torch.equal(a, b) for a, b in zip(moved, moved_less, strict=True)),
        state_share=state_share,
        closures=workshop.closures,
    )


class _Workshop:
    """Makes small copies, and updates them."""

    def __init__(self, optimizer: torch.optim.Optimizer, give: Give) -> None:
        self.optimizer = optimizer
        self.give = give
        self.closures = 0
        self.originals = _chosen(optimizer)
        if not self.originals:
            raise ValueError("no parameter of it is a floating-point tensor")

    def weights(self) -> dict[torch.Tensor, torch.Tensor]:
        """Return small parameters, the same at each call, by the optimizer's own."""
        generator = torch.Generator().manual_seed(SEED)
        weights: dict[torch.Tensor, torch.Tensor] = {}
        for original in self.originals:
            noise = torch.randn([min(s, SHRUNK) for s in original.shape], generator=generator)
            small = torch.nn.Parameter(noise.to(original.dtype).to(original.device))
            for name, value in vars(original).items():  # what Adahessian keeps there
                if isinstance(value, int | float):
                    setattr(small, name, value)
            weights[original] = small
        return weights

    def copy(self, weights: dict[torch.Tensor, torch.Tensor]) -> torch.optim.Optimizer:
        """Return a copy over these weights, at the lr of the trial."""
        copied = bare_copy(self.optimizer, weights)
        for key, value in self.optimizer.state.items():  # what a constructor has put there
            if key in weights and not any(torch.is_tensor(v) and v.dim() for v in value.values()):
                copied.state[weights[key]] = copy.deepcopy(value)
            elif not torch.is_tensor(key):
                copied.state[key] = copy.deepcopy(value)
        self.set_lr(copied, 1.0)
        return copied

    def set_lr(self, copied: torch.optim.Optimizer, factor: float) -> None:
        for group in copied.param_groups:
            lr = group.get("lr")
            if torch.is_tensor(lr):
                group["lr"] = torch.full_like(lr, LR * factor)
            elif lr is not None:
                group["lr"] = LR * factor

    def update(
        self,
        copied: torch.optim.Optimizer,
        seed: int,
        zero: Callable[[int], bool] = lambda number: False,
    ) -> None:
        """Make an update; the parameters for whose number `zero` holds have a gradient of zeros."""
        parameters = [p for group in copied.param_groups for p in group["params"]]
        generator = torch.Generator().manual_seed(seed)
        evaluations = 0

        def closure() -> torch.Tensor:
            nonlocal evaluations
            evaluations += 1
            for number, p in enumerate(parameters):
                noise = torch.randn(p.shape, generator=generator).to(p.dtype).to(p.device)
                self.give(p, torch.zeros_like(noise) if zero(number) else noise)
            return torch.ones((), device=parameters[0].device)

        _seed(seed, parameters)
        closure()
        try:
            copied.step()
        except (TypeError, AssertionError, RuntimeError, ValueError):
            generator, evaluations = torch.Generator().manual_seed(seed), 0
            _seed(seed, parameters)
            copied.step(closure)  # type: ignore[arg-type]
            self.closures = max(self.closures, evaluations)


def _gpus(parameters: Iterable[torch.Tensor]) -> set[torch.device]:
    return {p.device for p in parameters if p.device.type == "cuda"}


def _seed(seed: int, parameters: Iterable[torch.Tensor]) -> None:
    """Seed the generators that `_quiet` puts back: torch.manual_seed seeds those of all devices."""
    torch.default_generator.manual_seed(seed)
    for device in _gpus(parameters):
        torch.cuda.default_generators[device.index].manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


Give = Callable[[torch.Tensor, torch.Tensor], None]


def _dense(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    parameter.grad = gradient


def _with_graph(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    parameter.grad = None
    with torch.enable_grad():
        (parameter * gradient + 0.5 * parameter.square() * gradient).sum().backward(
            create_graph=True
        )


def _sparse(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    parameter.grad = gradient.to_sparse(1)


def _chosen(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return up to two parameters of each number of dimensions, of each param group."""
    chosen: list[torch.Tensor] = []
    for group in optimizer.param_groups:
        seen: dict[int, int] = {}
        for p in group["params"]:
            if p.is_floating_point() and p.numel() and seen.get(p.dim(), 0) < 2:
                seen[p.dim()] = seen.get(p.dim(), 0) + 1
                chosen.append(p)
    return chosen


def _alone(workshop: _Workshop, factor: float) -> tuple[list[torch.Tensor], str, float]:
    """Return how far weights move at an lr; the entry of the state that is a copy; its share."""
    weights, kept = workshop.weights(), ""
    start = [p.detach().clone() for p in weights.values()]
    copied = workshop.copy(weights)
    workshop.set_lr(copied, factor)
    for number in range(len(SEQUENCE) + 2):  # RAdam moves nothing in its first ones
        before = {p: p.detach().clone() for p in weights.values()}
        workshop.update(copied, number)
        kept = kept or _kept_weights(copied, before)
    moved = [(p.detach() - old).double() for p, old in zip(weights.values(), start, strict=True)]
    kept_bytes = sum(
        value.numel() * value.element_size()
        for state in copied.state.values()
        if isinstance(state, dict)
        for value in state.values()
        if torch.is_tensor(value) and value.dim()
    )
    own = sum(p.numel() * p.element_size() for p in weights.values())
    return moved, kept, kept_bytes / own


def _kept_weights(
    optimizer: torch.optim.Optimizer, before: dict[torch.Tensor, torch.Tensor]
) -> str:
    """Return the entry of the state that equals the weights before or after an update."""
    for parameter, state in optimizer.state.items():
        if parameter not in before or not isinstance(state, dict):
            continue
        old, new = before[parameter], parameter.detach()
        if new.numel() < 2 or torch.equal(old, new):
            continue
        for name, value in state.items():
            if torch.is_tensor(value) and value.numel() == new.numel():
                flat = value.detach().flatten().to(new.dtype)
                if torch.equal(flat, old.flatten()) or torch.equal(flat, new.flatten()):
                    return str(name)
    return ""


def _separates(workshop: _Workshop) -> bool:
    """Return whether exchanging states equals separate optimizers over the same weights."""
    here, there = workshop.weights(), workshop.weights()
    one = workshop.copy(here)
    states = GroupStates(one, len(SEQUENCE))
    others: dict[str, torch.optim.Optimizer] = {}
    for number, group in enumerate(SEQUENCE):
        if group not in others:
            others[group] = workshop.copy(there)
        states.select(group)
        for copied in (one, others[group]):
            workshop.set_lr(copied, 1 / (1 + number))
            workshop.update(copied, number, zero=functools.partial(_every_third, number))
        states.keep_counters()
        states.count_update()
        if not all(torch.equal(here[p], there[p]) for p in here):
            return False
    return True


def _every_third(offset: int, number: int) -> bool:
    return (number + offset) % 3 == 0


@contextmanager
def _quiet(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    devices = _gpus(p for group in optimizer.param_groups for p in group["params"])
    # What an optimizer compiles, it would compile for these sizes, and once more for its own.
    eager = torch.compiler.set_stance("force_eager")
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with warnings.catch_warnings(), torch.random.fork_rng(devices), eager:
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
