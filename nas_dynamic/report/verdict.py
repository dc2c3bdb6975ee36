"""What a comparison of two trainings tells, in words."""

from __future__ import annotations

import math

import numpy as np

from nas_dynamic.report.format import points, seeds_text
from nas_dynamic.report.measures import HALF_WIDTH, MEASURES, PRIMARY
from nas_dynamic.report.records import Comparison

__all__ = ["difference_text", "verdict"]


def difference_text(comparison: Comparison, measure: str) -> str:
    """Return what the second training has more of a measure, with its interval."""
    form, found = MEASURES[measure].form, comparison.differences[measure]
    return points(found) if form.endswith("%") else f"{found:+{form}}"


def verdict(comparison: Comparison) -> str:
    """Return what the intervals tell of the two trainings, and what they do not."""
    return " ".join(filter(None, _sentences(comparison)))


def _sentences(comparison: Comparison) -> list[str]:
    first, other = comparison.arms
    measure = PRIMARY if PRIMARY in comparison.differences else "mean_accuracy"
    found = comparison.differences[measure]
    title = MEASURES[measure].title
    if math.isnan(found.value):
        return [f"{title} is undefined: in one seed all subnets score the same."]
    less = f"{title} of {other} less that of {first} is {difference_text(comparison, measure)}"
    seeds = seeds_text(comparison.seeds)
    said = [_in_words(comparison, measure)]
    if found.count == 1:
        said.append(f"{less} in {seeds}. One seed tells nothing about the next one: run more.")
    else:
        said.append(f"{less}, the mean over {seeds} with its 95% interval (Student's t).")
        said.append(_shown(comparison, measure))
    second = comparison.differences.get("tau_by_accuracy")
    if second is not None and not math.isnan(second.value):
        said.append(
            "By the accuracy, the second measure, the difference is "
            f"{difference_text(comparison, 'tau_by_accuracy')}."
        )
    return said


def _in_words(comparison: Comparison, measure: str) -> str:
    """Return the difference in a sentence that needs no statistics."""
    first, other = comparison.arms
    found, primary = comparison.differences[measure], measure == PRIMARY
    size = f"{abs(found.value):.2f}" if primary else f"{100 * abs(found.value):.1f} points"
    known = [values[measure] for values in comparison.arms.values() if measure in values]
    means = [float(np.mean(values)) for values in known]
    form = ".2f" if primary else ".1%"
    levels = f" ({means[1]:{form}} against {means[0]:{form}})" if len(means) == 2 else ""
    more, less = ("higher", "lower") if primary else ("more", "less")
    direction = more if found.value > 0 else less
    said = (
        f"{other} ranks {size} {direction} than {first}{levels}"
        if primary
        else f"Subnets of {other} are {size} {direction} accurate than those of {first}{levels}"
    )
    if found.count == 1:
        return f"{said}, in one seed."
    if found.low <= 0 <= found.high:
        return f"{said}; the interval holds 0: nothing can be told."
    return f"{said}; the interval excludes 0."


def _shown(comparison: Comparison, measure: str) -> str:
    first, other = comparison.arms
    found = comparison.differences[measure]
    if found.low > 0 or found.high < 0:
        better = found.low > 0
        if measure == PRIMARY:
            does = "better" if better else "worse at this budget"
            shown = f"So {other} ranks these subnets {does} than {first} does."
        else:
            does = "more" if better else "less"
            shown = f"So subnets of {other} are {does} accurate than those of {first}."
        return shown + _of_curves(comparison)
    if measure != PRIMARY or comparison.seeds_needed is None:
        return ""
    if comparison.seeds_needed > found.count:
        return f"At this spread about {comparison.seeds_needed} seeds would give ±{HALF_WIDTH:g}."
    return "If there is a difference, it is small."


def _of_curves(comparison: Comparison) -> str:
    if comparison.curves is None or len(set(comparison.curves.values())) == 1:
        return ""
    static, dynamic = comparison.curves.values()
    return (
        f" The arms differ in the decay curve as well, {static} and {dynamic}: --static-curve "
        f"{dynamic}, with another --out, tells how much of it that is."
    )
