"""Whether the subnet that a host tells is the one that has gradients."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from nas_dynamic.attach.update_rule import Update
from nas_dynamic.space import Architecture, Key, is_mixture, key

__all__ = ["SampledCheck"]

FIRST, THEN_EVERY = 256, 64
"""Updates that are looked at: the first ones, and later one in so many."""

ENOUGH = 12
"""Updates with a gradient after which a parameter says something."""

MEMORY = 1024
"""Architectures that are remembered."""


class SampledCheck:
    """Notices that `architecture` returns another subnet than the one that was trained.

    In a space of paths the parameters that have a gradient show the subnet. Two things contradict
    what is told: two updates of one told architecture train different parameters; or parameters
    come and go, and no choice of what is told has anything to do with it for any of them. Of
    supernets whose subnets are slices of the same tensors, and of mixtures of subnets, nothing can
    be seen.
    """

    def __init__(self) -> None:
        self._updates = 0
        self._known: dict[Key, bytes] = {}
        self._columns: dict[tuple[str, Hashable], int] = {}
        self._seen = np.zeros((0, 0), dtype=bool)  # [parameter, candidate]: trained together
        self._overall = np.zeros(0, dtype=bool)
        self._counts = np.zeros(0, dtype=int)
        self._departures = np.zeros(0, dtype=int)
        self._last = np.zeros(0, dtype=bool)
        self._looked = 0

    def look(self, update: Update, param_groups: list[dict[str, Any]]) -> None:
        """Compare the subnet of an update with the parameters that have a gradient.

        Raises:
            RuntimeError: they contradict each other.
        """
        self._updates += 1
        if len(update.subnets) > 1 or (self._updates > FIRST and self._updates % THEN_EVERY):
            return
        told = update.subnets[0].architecture
        if is_mixture(told):
            return  # it trains everything
        parameters = [p for group in param_groups for p in group["params"]]
        has = np.array([p.grad is not None for p in parameters])
        lacks = np.array([p.grad is None and p.requires_grad for p in parameters])
        self._compare_with_the_same(told, has, lacks, update.step)
        self._note(told, has, lacks)
        if self._updates % 32 == 0:
            self._compare_with_the_choices(told)

    def _compare_with_the_same(
        self, told: Architecture, has: np.ndarray, lacks: np.ndarray, step: int
    ) -> None:
        bits = np.packbits(has).tobytes()
        known = self._known.setdefault(key(told), bits) if len(self._known) < MEMORY else bits
        if known == bits or len(known) != len(bits):
            return
        before = np.unpackbits(np.frombuffer(known, dtype=np.uint8), count=len(has)) > 0
        # Of a host that zeroes gradients in place there are ever more of them.
        if (before & lacks).any():
            raise RuntimeError(
                f"`architecture` returned {dict(told)} at step {step}, as it did before, and other "
                f"parameters have a gradient now: {_numbers(has & ~before)} beside those of then, "
                f"{_numbers(before & lacks)} not any more (numbers as in the optimizer). {REMEDY}"
            )

    def _note(self, told: Architecture, has: np.ndarray, lacks: np.ndarray) -> None:
        for pair in told.items():
            self._columns.setdefault(pair, len(self._columns))
        rows, columns = len(has), len(self._columns)
        chosen = np.zeros(columns, dtype=bool)
        chosen[[self._columns[pair] for pair in told.items()]] = True
        last = _grown(self._last, rows)
        seen = _grown(self._seen, rows, columns) | (has[:, None] & chosen)
        overall = _grown(self._overall, columns) | chosen
        counts = _grown(self._counts, rows) + has
        departures = _grown(self._departures, rows) + (last & lacks)
        # All at once, so that an error on the way leaves what was.
        self._seen, self._overall, self._counts = seen, overall, counts
        self._departures, self._last = departures, has
        self._looked += 1

    def _compare_with_the_choices(self, told: Architecture) -> None:
        come_and_go = (self._counts >= ENOUGH) & (self._departures >= ENOUGH // 2)
        if not come_and_go.any() or len(self._columns) == len(told):
            return
        if (self._seen[come_and_go] == self._overall).all():
            raise RuntimeError(
                f"parameters {_numbers(come_and_go)} (as in the optimizer) have a gradient in some "
                f"updates and in others not, and none of the choices that `architecture` returned "
                f"in {self._looked} updates, the last {dict(told)}, has to do with it. {REMEDY}"
            )


REMEDY = (
    "The subnet that is told is not the one that is trained: return the one that the loss was "
    "computed with, also where the host sets another one before the step or draws anew for each "
    "micro-batch. If gradients come and go for another reason, pass check_sampled=False"
)


def _numbers(chosen: np.ndarray) -> str:
    found = np.flatnonzero(chosen).tolist()
    if not found:
        return "none"
    return ", ".join(map(str, found[:6])) + (f", … ({len(found)} in all)" if len(found) > 6 else "")


def _grown(array: np.ndarray, *shape: int) -> np.ndarray:
    """Return an array with zeros added, for parameters and candidates that are new."""
    if array.shape == shape:
        return array
    return np.pad(array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)])
