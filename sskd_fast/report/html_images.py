"""Section of report.html with validation images and their instances, one column for each model."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from sskd_fast.method import title_of
from sskd_fast.report.overlays import MOST_NUMBERED, Overlay, OverlayRow, Shown, overlay_rows
from sskd_fast.report.run_folder import RunFolder

OVERLAY_COLUMNS = ("zero_shot_teacher", "adapted_teacher", "supervised_student", "refined_student")
SHOWN_SCORE = 0.5


def images_section(run: RunFolder) -> str:
    """Ground truth and predictions on the same validation images, one row for each image; "" without images."""
    columns = {name: run.predictions[name] for name in OVERLAY_COLUMNS if name in run.predictions}
    if "refined_student" not in columns and "distilled_student" in run.predictions:
        columns["distilled_student"] = run.predictions["distilled_student"]
    if run.ground_truth is None or not run.ground_truth["images"]:
        return ""
    titles = {"ground_truth": "ground truth", **{name: title_of(name).lower() for name in columns}}
    rows = overlay_rows(run.ground_truth, run.images_dir, columns, titles=titles, minimum_score=SHOWN_SCORE)
    return (
        "<section><h2>Validation images</h2><p>An object keeps its number and colour in every column. Pale outlines "
        "with a question mark cover no object at IoU 0.5 or more, or one that a higher score has taken. ✗ marks a "
        f"wrong class. Predictions with a score from {SHOWN_SCORE:g} up are drawn; AP counts all. The images are "
        "spread evenly over the set, not cherry-picked.</p>"
        + "".join(image_figures(row, titles) for row in rows)
        + "</section>"
    )


def image_figures(row: OverlayRow, titles: Mapping[str, str], note: str = "") -> str:
    """The pictures of an image side by side, under its file name.

    titles: column name -> title.  note: a sentence on the image, or "".
    """
    problem = f'<p class="soft">{escape(row.problem)}</p>' if row.problem else ""
    figures = "".join(
        f'<figure><img src="{overlay.source}" width="{overlay.width}" height="{overlay.height}" loading="lazy" '
        f'alt="{escape(overlay.alt)}"><figcaption><b>{escape(titles[overlay.column].capitalize())}</b>'
        f"{escape(overlay.summary)}{_chips(overlay)}</figcaption></figure>"
        for overlay in row.overlays
    )
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<div class="image"><h3>{escape(row.file_name)}</h3>{said}{problem}<div class="columns">{figures}</div></div>'
    )


def _chips(overlay: Overlay) -> str:
    """Number, class and score of each instance, for the caption; only the range of scores if there are many."""
    chips = [_chip(shown) for shown in overlay.shown]
    if len(overlay.shown) > MOST_NUMBERED:
        scores = [shown.score for shown in overlay.shown if shown.score is not None]
        chips = [f"<li>scores {min(scores):.2f} to {max(scores):.2f}</li>"] if scores else []
    return f'<ul class="chips">{"".join(chips)}</ul>' if chips else ""


def _chip(shown: Shown) -> str:
    number = "?" if shown.number is None else shown.number
    score = "" if shown.score is None else f" {shown.score:.2f}"
    mark = "" if shown.right else ' class="wrong"'
    dot = f'<i style="background:rgb{shown.color}"></i>'
    note = " ✗" if shown.number is not None and not shown.right else ""
    return f"<li{mark}>{dot}{number} {escape(shown.name)}{score}{note}</li>"
