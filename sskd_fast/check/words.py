"""The findings of a check as text."""

from __future__ import annotations

from typing import Any

from sskd_fast.check.findings import Checked
from sskd_fast.data.errors import LISTED_PROBLEMS, grouped, named

_TITLES = {"labeled": "labelled", "val": "validation", "unlabeled": "unlabelled"}


def checked_text(checked: Checked) -> str:
    """The findings as text: sets, derived settings, notes, then numbered warnings and problems grouped by cause."""
    problems = grouped(checked.problems)
    further = len(problems) - LISTED_PROBLEMS
    lines = [checked.place, *(f"  {_TITLES[name]}: {_set_text(figures)}" for name, figures in checked.sets.items())]
    if checked.derived:
        height, width = checked.derived["crop"]
        lines.append(
            f"  a run would use: zoom {checked.derived['zoom']:.2f}, crops of {height} x {width} pixels, "
            f"{checked.derived['queries']} queries"
        )
    lines += [f"  {note}" for note in checked.notes]
    lines += _numbered("warning", checked.warnings) + _numbered(
        "problem", problems[:LISTED_PROBLEMS], len(checked.problems)
    )
    lines += [f"    ... and {further} more kinds, in --json FILE"] * (further > 0)
    return "\n".join(lines if checked.problems else [*lines, "  no problem found"])


def _set_text(figures: dict[str, Any]) -> str:
    smallest, largest = (f"{height} x {width}" for height, width in (figures["smallest"], figures["largest"]))
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    text = f"{figures['images']} images of {size} pixels (height x width)"
    if "classes" not in figures:
        return text
    classes = named([f"{name} {count}" for name, count in figures["classes"].items()], 20)
    crowd = f" and {figures['crowd_regions']} crowd regions" if figures["crowd_regions"] else ""
    empty = f"; {figures['empty_images']} images without an instance" if figures["empty_images"] else ""
    return f"{text}, {figures['instances']} instances{crowd} ({classes}){empty}"


def _numbered(kind: str, texts: list[str], count: int | None = None) -> list[str]:
    total = len(texts) if count is None else count
    if not total:
        return []
    return [f"  {total} {kind}{'s' * (total > 1)}:", *(f"    {i}. {text}" for i, text in enumerate(texts, 1))]
