"""What to do after some runs: train longer, add seeds, take a subnet away."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from nas_dynamic.analysis.ranking import comparable_loss
from nas_dynamic.report.format import few, percent
from nas_dynamic.report.records import Comparison, SeedResult
from nas_dynamic.report.run_folder import Run
from nas_dynamic.space import architecture_text
from nas_dynamic.storage.journal import command_text

__all__ = ["head", "next_steps"]

Statement = tuple[str, str]
"""What it is about, and what is said."""

FALLING = 0.05
"""Share of the training loss by which it falls in the last tenth of a training that is not over."""

LEAST = 5
"""Updates in a tenth, to tell anything of its loss."""


def head(run: Run) -> str:
    """Return what was run: space, data, subnets, seeds, updates."""
    said = []
    for section in ("space", "data"):
        name = (run.config.get(section) or {}).get("name")
        if name:
            said.append(str(name))
    if run.seeds:
        subnets, seeds = len(run.subnets), len(run.seeds)
        updates = max(seed.updates for seed in run.seeds)
        said += [f"{subnets:,} subnets scored", f"{seeds} seed{'s' if seeds > 1 else ''}"]
        said.append(f"{updates:,} updates")
    return " · ".join(said)


def next_steps(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> list[Statement]:
    """Return what to do about each run that has results, and about comparisons of them."""
    steps = [step for run in runs if run.seeds for step in _of_run(run)]
    for comparison in comparisons:
        needed, count = comparison.seeds_needed, len(comparison.seeds)
        if needed is not None and needed > count:
            said = (
                f"At the spread seen, about {needed} seeds would tell them apart to ±0.05 of τ; "
                f"there are {count}. `nas-dynamic compare` with more numbers after `--seed` keeps "
                "what is there."
            )
            steps.append((f"{' and '.join(comparison.arms)}: seeds", said))
    return steps


def _of_run(run: Run) -> Iterator[Statement]:
    falls = [fall for seed in run.seeds for fall in [_fall(seed)] if fall is not None]
    if falls:
        mean = float(np.mean([fall for fall, _ in falls]))
        error = math.sqrt(sum(error**2 for _, error in falls)) / len(falls)
        change = (
            f"In the last tenth of the training the loss {'fell' if mean >= 0 else 'rose'} by "
            f"{percent(abs(mean))}, ±{percent(2 * error)}"
        )
        if mean - 2 * error > 0:
            said = f"{change}: it still falls. Give it more epochs before you trust its ranking."
        elif mean + 2 * error < FALLING:
            said = f"{change}: more of the same would change little."
        else:
            said = f"{change}: whether it still falls cannot be told."
        yield f"{run.name}: long enough?", said
    if len(run.seeds) == 1:
        yield (
            f"{run.name}: seeds",
            "One seed does not tell how much of its ranking is chance: train two more (`--seed`).",
        )
    seed = min(run.seeds, key=lambda seed: comparable_loss(seed.pick.loss))
    place = run.name if run.folder.is_absolute() else run.folder
    of = ["--seed", seed.seed] if len(run.seeds) > 1 else []
    middle = sorted(run.parameters())[len(run.subnets) // 2]
    export = command_text("nas-dynamic", "export", place, *of)
    search = command_text("nas-dynamic", "search", place, *of, "--limit", f"parameters={middle}")
    yield (
        f"{run.name}: a subnet to take",
        f"{architecture_text(seed.pick.architecture)}: {few(seed.pick.parameters)} parameters, "
        f"{percent(seed.pick.accuracy)} of the validation images, the lowest loss of the "
        f"{len(seed.subnets):,} that were scored. `{export}` writes it as a network for torch "
        f"alone; `{search}` looks for a better one in the whole space first.",
    )


def _fall(seed: SeedResult) -> tuple[float, float] | None:
    """Return by what share the loss fell from the tenth before the last one to the last.

    With its standard error; None of trainings of which too little is recorded.
    """
    losses = np.array([update.loss for update in seed.trace if update.loss is not None])
    tenth = len(losses) // 10
    if tenth < LEAST or not losses[-2 * tenth : -tenth].mean() > 0:
        return None
    before, last = losses[-2 * tenth : -tenth], losses[-tenth:]
    error = math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / tenth)
    return float(1 - last.mean() / before.mean()), float(error / before.mean())
