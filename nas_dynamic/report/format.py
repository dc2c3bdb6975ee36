"""Numbers as text, for a report."""

from __future__ import annotations

import math
from typing import Any

from nas_dynamic.analysis.ranking import Estimate

__all__ = [
    "bytes_text",
    "duration",
    "energy",
    "estimated",
    "few",
    "interval",
    "joined",
    "percent",
    "points",
    "short",
    "signed",
    "value_text",
]


def percent(share: float) -> str:
    """A share in [0, 1], such as an accuracy: 0.953 → 95.3%."""
    return f"{share:.1%}"


def points(share: float) -> str:
    """A difference of shares, in percentage points, with its sign."""
    return f"{_minus(f'{100 * share:+.1f}')} points"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return _minus(f"{value:+.2f}")


def few(number: float) -> str:
    """A count in three digits: 12,345 → 12.3k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{float(f'{number / size:.3g}'):g}{unit}"
    return f"{float(f'{number:.3g}'):g}"


def interval(low: float, high: float, form: str = ".3f") -> str:
    """The ends of an interval, in brackets."""
    return _minus(f"[{low:{form}}, {high:{form}}]")


def estimated(estimate: Estimate | None, form: str = ".3f") -> str:
    """A value with its interval; "undefined" where a constant side leaves none."""
    if estimate is None or math.isnan(estimate.value):
        return "undefined"
    value = _minus(f"{estimate.value:{form}}")
    if math.isnan(estimate.low):
        return value
    return f"{value} {interval(estimate.low, estimate.high, form)}"


def duration(seconds: float) -> str:
    """Wall time: 12 s, 3 min 20 s, 5 h 7 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def bytes_text(count: int) -> str:
    """Memory, in units of 1024: 512 MiB, 1.2 GiB."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB"


def energy(joules: float) -> str:
    """Energy, in J up to a Wh, then in Wh or kWh."""
    if joules < 3600:
        return f"{joules:.0f} J"
    return f"{joules / 3600:.1f} Wh" if joules < 3.6e6 else f"{joules / 3.6e6:.2f} kWh"


def short(text: str, length: int = 16) -> str:
    """A name, cut in its middle to fit: names of one kind often differ at the end."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def joined(names: list[Any], last: str = "and") -> str:
    """A list as it is said: a, b and c."""
    words = [str(name) for name in names]
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def value_text(value: Any) -> str:
    """A value of a configuration, as it would stand in YAML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {value_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value)


def _minus(text: str) -> str:
    """A minus sign in place of a hyphen."""
    return text.replace("-", "−")
