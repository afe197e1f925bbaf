"""A study's table as Markdown, and its place on a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sskd_fast.files import write_text
from sskd_fast.report.numbers import ap_text, count_text, difference_text, is_number, seconds_text
from sskd_fast.study.tables import Table
from sskd_fast.typed_settings import ConfigError

Summary = Mapping[str, Any]


def _two(value: object) -> str:
    return f"{value:.2f}" if is_number(value) else "-"


# Figure -> the title of its column, the function that formats it.
COLUMNS: dict[str, tuple[str, Callable[[object], str]]] = {
    "ap": ("AP", ap_text), "ap50": ("AP50", ap_text), "ap75": ("AP75", ap_text), "ap_small": ("AP small", ap_text),
    "ap_medium": ("AP medium", ap_text), "ap_large": ("AP large", ap_text), "touching_ap": ("AP touching", ap_text),
    "params": ("parameters", count_text), "gflops": ("GFLOPs a crop", _two), "steps": ("steps", count_text),
    "chain_steps": ("steps, all stages", count_text),
    "step_seconds": ("seconds per step", _two), "seconds": ("training", seconds_text),
    "label_seconds": ("labelling", seconds_text), "cpu_seconds": ("CPU time", seconds_text),
    "total_seconds": ("with all it builds on", seconds_text), "map_stride": ("stride of the map", count_text),
    "margin": ("margin", _two), "fnr_foreground": ("FNR, foreground", _two),
    "fnr_background": ("FNR, background", _two), "step_cost": ("step, times no L_pxl's", _two),
}  # fmt: skip
_ALWAYS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "touching_ap")
# Figures shown with their spread over seeds.
_SPREAD = ("ap", "ap50", "touching_ap")


def markdown(table: Table, summary: Summary, command: str) -> str:
    """The study as a section of a page, with measured figures only."""
    head = f"## {table.name}, {_listed(summary.get('dataset', []))}\n\n{table.question}"
    unit = summary.get("unit", "seed")
    facts = [
        f"`{command}`",
        f"{unit.capitalize()}s {', '.join(map(str, summary['seeds']))}; "
        + "; ".join(f"{words} {_listed(summary.get(key, []))}" for key, words in _COUNTS.items())
        + ".",
        f"Measured on {_listed(summary['dates'])} at {_listed(summary['commits'])}: {'; '.join(summary['machines'])}.",
    ]
    if summary["unfinished"]:
        missing = ", ".join(f"{name} ({unit} {seed})" for name, seed in summary["unfinished"])
        facts.append(f"Not measured yet: {missing}.")
    words = "  \n".join(facts)
    return f"{head}\n\n{words}\n\n{_markdown(columns(table, summary))}\n\n{_words(summary)}\n"


_COUNTS = {
    "labeled_images": "labelled images",
    "unlabeled_images": "unlabelled images",
    "val_images": "validation images",
}


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "-"


def columns(table: Table, summary: Summary) -> dict[str, list[str]]:
    """Column title -> one cell for each row; columns without a figure are left out."""
    rows = summary["rows"]
    found: dict[str, list[str]] = {"": [row["name"] for row in rows]}
    for key in (*_ALWAYS, *table.columns):
        title, text = COLUMNS[key]
        figures = [row["figures"].get(key, {}) for row in rows]
        if any(is_number(figure.get("mean")) for figure in figures):
            found[title] = [_cell(figure, text, spread=key in _SPREAD) for figure in figures]
        if key == "ap" and any("difference" in row for row in rows):
            found["difference"] = [_difference(row.get("difference"), table) for row in rows]
    return found


def _cell(figure: Mapping[str, Any], text: Callable[[object], str], spread: bool) -> str:
    sd = f" ± {text(figure['sd'])}" if spread and is_number(figure.get("sd")) else ""
    return text(figure.get("mean")) + sd


def _difference(gain: Mapping[str, Any] | None, table: Table) -> str:
    """ "+5.7 (+2.1 to +9.0)"; names the row it is compared with, unless that is the table's reference."""
    if gain is None:
        return ""
    known = is_number(gain["low"]) and is_number(gain["high"])
    ends = f" ({difference_text(gain['low'])} to {difference_text(gain['high'])})" if known else ""
    other = "" if gain["against"] == table.reference else f" against {gain['against']}"
    return difference_text(gain["ap"]) + ends + other


def _words(summary: Summary) -> str:
    reference = f" from {summary['reference']}" if summary["reference"] else ""
    unit = summary.get("unit", "seed")
    seeds = f"{unit}s and validation images" if len(summary["seeds"]) > 1 else f"validation images; it is one {unit}"
    return f"± is one standard deviation over {unit}s. Differences in AP{reference} have 95 % intervals over {seeds}."


def _markdown(cells: Mapping[str, Sequence[str]]) -> str:
    lines = [list(cells), ["---"] * len(cells), *zip(*cells.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def insert(page: Path, name: str, text: str) -> None:
    """Puts a study between its markers on a page, or at the end if there are none yet; the rest is unchanged.

    name: of the study.  Raises ConfigError if the page has only one of the two markers.
    """
    start, end = f"<!-- study {name}: written by python -m sskd_fast.study -->", f"<!-- end of study {name} -->"
    known = page.read_text(encoding="utf-8") if page.exists() else ""
    if (start in known) != (end in known) or known.find(end) < known.find(start):
        raise ConfigError(f"{page}: found one of the markers of study {name}, expected {start!r}, then {end!r}")
    block = f"{start}\n\n{text.strip()}\n\n{end}"
    if start in known:
        between = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        content = between.sub(lambda _: block, known, count=1)
    else:
        content = f"{known.rstrip()}\n\n{block}\n".lstrip()
    if content != known:
        write_text(page, content)
