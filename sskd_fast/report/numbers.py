"""Numbers of metrics.json as text, with a dash for unknown ones."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite number (metrics of a running stage may be null or NaN)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count_text(value: object) -> str:
    """A count in three significant digits: 1059000 -> "1.06 M"; a dash if it is unknown."""
    if not is_number(value):
        return "-"
    number = value
    for unit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.0f}"


def ap_text(value: object) -> str:
    """An AP in percent with one decimal; a dash if it is unknown."""
    return f"{value:.1f}" if is_number(value) else "-"


def seconds_text(value: object) -> str:
    """A duration in seconds if below ten minutes, else in hours and minutes: 42 -> "42 s", 5400 -> "1 h 30 min"."""
    if not is_number(value):
        return "-"
    seconds = value
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def difference_text(difference: float) -> str:
    """A signed difference in AP: "+4.8", "-0.3", or "0.0" without a sign."""
    rounded = f"{difference:+.1f}"
    return "0.0" if rounded[1:] == "0.0" else rounded
