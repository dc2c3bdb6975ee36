"""Numbers and lists as text, on the terminal and on pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nas_dynamic.analysis.ranking import Estimate

__all__ = [
    "bytes_text",
    "duration",
    "energy",
    "few",
    "joined",
    "number",
    "percent",
    "points",
    "seeds_text",
    "short",
    "value_text",
]


def number(value: float, form: str = ".2f") -> str:
    """Return a number in a form, with a minus sign; "undefined" for NaN."""
    return "undefined" if math.isnan(value) else f"{value:{form}}".replace("-", "−")


def percent(share: float) -> str:
    """Return a share in [0, 1], such as an accuracy: 0.953 → 95.3%."""
    return f"{share:.1%}"


def points(difference: Estimate) -> str:
    """Return a difference of shares, in percentage points, with sign and interval."""
    scaled = Estimate(
        100 * difference.value, 100 * difference.low, 100 * difference.high, difference.count
    )
    return f"{scaled:+z.1f}{'' if math.isnan(difference.value) else ' points'}"


def few(number: float) -> str:
    """Return a count in three digits: 12,345 → 12.3k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{float(f'{number / size:.3g}'):g}{unit}"
    return f"{float(f'{number:.3g}'):g}"


def duration(seconds: float) -> str:
    """Return a wall time: 12 s, 3 min 20 s, 5 h 7 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def bytes_text(count: int) -> str:
    """Return a size of memory, in units of 1024: 512 MiB, 1.2 GiB."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB"


def energy(joules: float) -> str:
    """Return an energy, in J up to a Wh, then in Wh or kWh."""
    if joules < 3600:
        return f"{joules:.0f} J"
    return f"{joules / 3600:.1f} Wh" if joules < 3.6e6 else f"{joules / 3.6e6:.2f} kWh"


def short(text: str, length: int = 16) -> str:
    """Return a name, cut in its middle to fit: names of one kind often differ at the end."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def joined(names: Sequence[Any]) -> str:
    """Return a list as it is said: a, b and c."""
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds as they are said: seed 3, seeds 0 and 1, seeds 0 to 9."""
    if len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' if len(seeds) > 1 else ''} {joined(seeds)}"


def value_text(value: Any) -> str:
    """Return a value of a configuration, as it would stand in YAML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {value_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value)
