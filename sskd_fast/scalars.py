"""Strict reading of scalars in JSON files: an unambiguous value is accepted, anything else raises ScalarError."""

from __future__ import annotations

import math
import re
import sys
from numbers import Real
from typing import Any

# The largest integer that a float64 holds exactly, as tools of other languages read JSON.
LARGEST = 2**53
# Larger image sides and coordinates are not plausible pixels; COCO's C code counts in 32 bits.
LARGEST_SIDE = 2**20
LARGEST_IMAGE = 2**31 - 1
_INTEGER = re.compile(r"[+-]?\d{1,20}")


class ScalarError(ValueError):
    """Raised for a value of the wrong kind; names what was found and what was expected."""

    def __init__(self, found: str, expected: str) -> None:
        self.found, self.expected = found, expected
        super().__init__(f"{found}; expected {expected}")


def shown(value: object) -> str:
    """A short description of a JSON value for messages: "the text 'a'", "a list", "null", "NaN"."""
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "an infinite number"
    if value is None or isinstance(value, (int, float)):
        return "null" if value is None else str(value) if abs(value) <= LARGEST else "a number of more than 53 bits"
    return "a list" if isinstance(value, (list, tuple)) else "an object" if isinstance(value, dict) else repr(value)


def integer(value: object, least: int = -LARGEST, most: int = LARGEST) -> int:
    """An integer in [least, most]; accepts 3.0 and "3" too."""
    kind = "an integer" if (least, most) == (-LARGEST, LARGEST) else f"an integer from {least} to {most}"
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        whole = int(value)
    elif isinstance(value, bool) or not isinstance(value, Real) or value != value // 1:
        raise ScalarError(shown(value), kind)
    else:
        whole = int(value.__floor__())
    if not least <= whole <= most:
        raise ScalarError(shown(whole), kind)
    return whole


def number(value: object) -> float:
    """A finite float; accepts a number written as text too."""
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ScalarError(shown(value), "a finite number")
    return found


def flag(value: object) -> bool:
    """A boolean: True for 1, true, "1", "true"; False for 0, false, "0", "false", "", null."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if plain is None or (isinstance(plain, (str, int, float)) and plain in (0, "0", "false", "")):
        return False
    if isinstance(plain, (str, int, float)) and plain in (1, "1", "true"):
        return True
    raise ScalarError(shown(value), "0 or 1")


def text(value: object) -> str:
    """A non-empty text that is valid in file names and in UTF-8: no NUL, no lone surrogates."""
    if not isinstance(value, str) or not value:
        raise ScalarError("an empty text" if value == "" else shown(value), "a text")
    if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
        raise ScalarError(f"the text {value[:60]!a}", "a text of valid characters")
    return value


def size(height: object, width: object) -> tuple[int, int] | None:
    """(height, width) of an image in pixels; None if one is missing, null or 0."""
    sides = [None if side is None else integer(side, 0, LARGEST_SIDE) for side in (height, width)]
    if not all(sides):
        return None
    found = (int(sides[0] or 0), int(sides[1] or 0))
    if found[0] * found[1] > LARGEST_IMAGE:
        raise ScalarError(f"{found[0]} x {found[1]} pixels", f"at most {LARGEST_IMAGE} pixels")
    return found


def is_number(value: Any) -> bool:
    """True for a JSON number, not a bool, that is finite in float64."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
