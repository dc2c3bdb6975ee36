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
    fall = [_fall(seed) for seed in run.seeds]
    known = [value for value in fall if not math.isnan(value)]
    if known:
        mean = float(np.mean(known))
        if mean > FALLING:
            said = (
                f"The loss still fell by {percent(mean)} in the last tenth of the training, so it "
                "is not over: give it more epochs before you trust its ranking."
            )
        else:
            change = "fell" if mean >= 0 else "rose"
            said = (
                f"The loss {change} by {percent(abs(mean))} in the last tenth of the training: "
                "more of the same schedule would change little. Whether a longer one ranks better "
                "is another question."
            )
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


def _fall(seed: SeedResult) -> float:
    """Return the share by which the loss fell from the tenth before the last one to the last.

    NaN for trainings of which too little is recorded.
    """
    losses = [update.loss for update in seed.trace if update.loss is not None]
    tenth = len(losses) // 10
    if tenth < 3:
        return math.nan
    before, last = np.mean(losses[-2 * tenth : -tenth]), np.mean(losses[-tenth:])
    return float(1 - last / before) if before > 0 else math.nan
