"""Argparse types for numbers in a range; their errors name the value found and the range expected."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def at_least(low: Number) -> Callable[[str], Number]:
    """A parser of numbers >= low; of whole numbers if low is an int."""
    return _number(low, lambda value: value >= low, f"of at least {low}")


def between(low: Number, high: Number) -> Callable[[str], Number]:
    """A parser of numbers from low to high inclusive; of whole numbers if low is an int."""
    return _number(low, lambda value: low <= value <= high, f"from {low:g} to {high:g}")


def _number(like: Number, fits: Callable[[Number], bool], expected: str) -> Callable[[str], Number]:
    kind = type(like)
    noun = "a whole number" if kind is int else "a number"

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {noun} {expected}")
        return value

    return parse
