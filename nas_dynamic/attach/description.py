"""What is attached, in one line, for the terminal and for loggers."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from nas_dynamic.space import candidate_text

if TYPE_CHECKING:
    from nas_dynamic.attach.training import DynamicTraining

__all__ = ["announce", "definition", "describe"]

LARGE = 0.1
"""Share of the parameters' memory from which on what a group costs is said."""


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """To stderr, unless the program has set up logging itself."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            self.stream = sys.stderr
            super().emit(record)


logger = logging.getLogger("nas_dynamic")
if not logger.handlers:
    _handler = _Handler()
    _handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)


def announce(training: DynamicTraining, state_share: float) -> None:
    """Say that dynamic training is on, and what it does: a line at INFO of `nas_dynamic`."""
    text = f"{training!r}"
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    size = sum(p.numel() * p.element_size() for p in parameters)
    if training.momentum is not None and state_share > LARGE:
        text += f"; each group keeps {state_share * size / 2**20:,.1f} MiB"
    logger.info("%s", text)


def describe(training: DynamicTraining) -> str:
    """Return the kind of optimizer, and all that decides lr, momentum and idle parameters."""
    parts = [type(training.optimizer).__name__]
    calr, momentum, space = training.calr, training.momentum, training.space
    if calr is None:
        parts.append("no CaLR")
    else:
        curve = calr.definition()["curve"]
        steps = "" if calr.total_steps is None else f" over {calr.total_steps:,} steps"
        warmup = f" after {calr.warmup_steps:,} of warm-up" if calr.warmup_steps else ""
        start = "" if calr.start == 1 else f" from {calr.start:g} × lr"
        by = "rank" if "population" in calr.definition() else "complexity"
        parts.append(
            f"CaLR: {curve}{start}{steps}{warmup}, γ {calr.gamma_max:g} to {calr.gamma_min:g} by "
            f"{by} of {calr.c_min:,.6g} to {calr.c_max:,.6g}"
        )
    if momentum is None:
        parts.append("one momentum")
    else:
        rule = momentum.group_by
        known = isinstance(rule, str) and space is not None
        count = f", {len(space.choices[rule])} groups" if known else ""  # type: ignore[union-attr, index]
        parts.append(f"momentum by {next(iter(momentum.definition().values()))!r}{count}")
    parts.append(f"idle parameters {training.idle}")
    if training.seed is not None:
        parts.append(f"seed {training.seed}")
    return f"DynamicTraining({'; '.join(parts)})"


def definition(training: DynamicTraining) -> dict[str, Any]:
    """Return what decides a training, as plain data: a checkpoint is refused where it differs."""
    space = training.space
    return {
        "idle": training.idle,
        "space": space and {k: [candidate_text(c) for c in v] for k, v in space.choices.items()},
        "calr": training.calr and training.calr.definition(),
        "momentum": training.momentum and training.momentum.definition(),
    }
