"""Section of report.html on the models of a run: a table and bars."""

from __future__ import annotations

from html import escape
from typing import Any

from sskd_fast.method import EVERY_RUN, ROW_ORDER, stage_of, title_of
from sskd_fast.report.curves import nice_ticks
from sskd_fast.report.numbers import ap_text, is_number
from sskd_fast.report.table import cost_columns, figure_columns, images_of, measured_rows, recipe_of, row_title

# With more classes or groups than this, the figures stay in details.json alone.
MOST_COLUMNS = 12
COST_NOTE = (
    "Training and CPU time are of a model's own stage, without measuring; labelling is the time that its pseudo-labels "
    "took. Images seen count as often as they were in a batch, labelled + unlabelled."
)
SIZES = {"ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}


def models_section(metrics: dict[str, Any], details: dict[str, dict[str, Any]]) -> str:
    """The table of all models, with a dash for what is not measured yet, their AP as bars, and the finer figures."""
    rows = measured_rows(metrics)
    figures = figure_columns(rows)
    best = {key: max((r[key] for r in rows.values() if is_number(r.get(key))), default=None) for key in figures}
    lines = []
    # If the teacher labels from the image as it is, no model has a separate row for its views.
    shown = {name: rows.get(name, {}) for name in (*ROW_ORDER, *rows) if name in rows or name in EVERY_RUN}
    costs = cost_columns(shown)
    for number, (name, row) in enumerate(shown.items()):
        note = escape("; ".join(filter(None, (images_of(name, metrics), recipe_of(name, row)))))
        cells = "".join(
            f"<td{' class=best' if row and row.get(key) == best[key] else ''}>{ap_text(row.get(key))}</td>"
            for key in figures
        )
        cells += "".join(f"<td>{column[number]}</td>" for column in costs.values())
        lines.append(
            f'<tr class="{_kind(name)}{"" if row else " pending"}"><th scope="row"><span class="key"></span>'
            f"{escape(row_title(name, row))}<small>{note}</small></th>{cells}</tr>"
        )
    limit = f", at most {metrics['max_detections']} detections per image" if "max_detections" in metrics else ""
    pending = "" if all(shown.values()) else "; a dash is not measured yet"
    titles = ("Model", *figures.values(), *(title[0].upper() + title[1:] for title in costs))
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    table = (
        f'<div class="card scroll"><table><caption>Validation AP{limit}{pending}. {COST_NOTE}</caption>'
        "<thead><tr>"
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    return f'<section><h2>Models</h2>{table}<div class="two">{_bars(rows)}</div>{_details(details)}</section>'


def _kind(name: str) -> str:
    """The kind of the row's model, which sets its colour."""
    stage = stage_of(name)
    return "student" if stage is None else stage.model


def _details(details: dict[str, dict[str, Any]]) -> str:
    """AP75 and AP by size, by group of images if the run has groups, and by class if there are few."""
    names = [name for name in ROW_ORDER if name in details]
    if not names:
        return ""
    columns: list[tuple[tuple[str, ...], str]] = [((key,), title) for key, title in SIZES.items()]
    for group in (key for key in details[names[0]] if key == "per_class" or key.startswith("by_")):
        values = sorted({value for name in names for value in details[name].get(group, {})})
        if 1 < len(values) <= MOST_COLUMNS:
            columns += [((group, value), value) for value in values]

    def figure(name: str, path: tuple[str, ...]) -> str:
        value: Any = details[name]
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return ap_text(value) if is_number(value) else "-"

    head = "".join(f'<th scope="col">{escape(title)}</th>' for _, title in columns)
    body = "".join(
        f'<tr class="{_kind(name)}"><th scope="row"><span class="key"></span>{escape(title_of(name))}</th>'
        + "".join(f"<td>{figure(name, path)}</td>" for path, _ in columns)
        + "</tr>"
        for name in names
    )
    return (
        '<details class="card scroll"><summary>AP75, AP by size, class and group</summary><table><thead><tr>'
        f'<th scope="col">Model</th>{head}</tr></thead><tbody>{body}</tbody></table></details>'
    )


def _bars(rows: dict[str, Any]) -> str:
    if not rows:
        return ""
    numbers = [row[key] for row in rows.values() for key in ("ap", "ap50") if is_number(row.get(key))]
    full = min(100.0, nice_ticks(0.0, max(numbers))[-1])
    items = []
    for name, row in rows.items():
        ap50 = row.get("ap50") if is_number(row.get("ap50")) else 0.0
        items.append(
            f'<li class="{_kind(name)}"><div class="name"><span>{escape(title_of(name))}</span><span class="number">'
            f'{ap_text(row["ap"])} <small>/ {ap_text(row.get("ap50"))}</small></span></div><div class="track">'
            f'<i class="behind" style="width:{100 * ap50 / full:.1f}%"></i>'
            f'<i style="width:{100 * row["ap"] / full:.1f}%"></i></div></li>'
        )
    return (
        '<div class="card"><h3>AP by model</h3><p class="legend"><span class="teacher"><span class="key"></span>teacher'
        '</span><span class="student"><span class="key"></span>student</span><span>strong: AP, muted: AP50</span>'
        f"<span>full width: {full:g}</span></p>"
        f'<ol class="bars">{"".join(items)}</ol></div>'
    )
