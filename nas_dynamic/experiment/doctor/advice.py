"""What the signs of a supernet advise: a rule on their intervals, and the figures behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.ranking import Estimate

__all__ = ["SMALL", "Advice", "Signs", "advise"]

SMALL = 0.02
"""A difference of Kendall τ that nobody would train for."""


@dataclass(frozen=True, eq=False)
class Signs:
    """What short trainings of a supernet show; estimates are means over seeds, with t-intervals.

    Attributes:
        lag: Spearman's ρ of a subnet's size and of how far its inherited loss is behind that of
            the same subnet trained alone for as many updates, after static training.
        lessened: what CaLR takes away of the lag.
        label: what momentum separation groups by; empty where no choice makes groups.
        within: mean cosine of the gradients of subnets of one group.
        across: that of subnets of two groups.
        calr: Kendall τ with CaLR less that without, of each seed.
        momentum: Kendall τ with CaLR and momentum separation less that with CaLR, of each seed.
        agreement: mean Kendall τ between the rankings of static supernets of two seeds.
        ceiling: Kendall τ between two trainings of the subnets alone.
    """

    lag: Estimate
    lessened: Estimate
    label: str
    within: Estimate
    across: Estimate
    calr: Difference
    momentum: Difference
    agreement: float
    ceiling: float


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    Attributes:
        what: the advice.
        reason: the figures that it stands on, in a sentence.
    """

    what: Literal["CaLR", "CaLR + MS", "few-shot", "nothing", "cannot be told"]
    reason: str


def advise(signs: Signs) -> Advice:
    """Return what the signs advise; what their intervals do not show is not advised.

    CaLR where it ranks better, or where large subnets lag and it lessens that without being seen
    to rank worse; with momentum separation where that ranks better still. Few-shot where the
    gradients of groups oppose each other, which one set of weights cannot serve. Nothing where
    gains of `SMALL` are excluded.
    """
    gain, more = mean_estimate(signs.calr.values), mean_estimate(signs.momentum.values)
    reason = f"CaLR changes Kendall τ by {gain:+.3f}"
    lessens = signs.lag.low > 0 and signs.lessened.low > 0
    if gain.low > 0 or (lessens and gain.high > 0):
        if lessens:
            reason += f"; large subnets lag, ρ {signs.lag:.2f}, of which it takes "
            reason += f"{signs.lessened:.2f} away"
        if more.low > 0:
            return Advice("CaLR + MS", f"{reason}; momentum separation adds {more:+.3f}")
        return Advice("CaLR", reason)
    if signs.across.high < 0:
        opposed = f"gradients of groups by {signs.label} oppose each other, cosine "
        return Advice("few-shot", f"{opposed}{signs.across:.3f}; {reason}")
    if gain.high < SMALL and more.high < SMALL:
        return Advice("nothing", f"{reason}: a gain of {SMALL:g} is excluded")
    width = max(abs(gain.value), SMALL)
    seeds = signs.calr.seeds_needed(width)
    told = f"; {seeds} seeds would tell it to ±{width:.3f}" if seeds is not None else ""
    return Advice("cannot be told", reason + told)
