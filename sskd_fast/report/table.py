"""The rows of metrics.json: titles, training images and cost of each model, and a table in plain text.

metrics: {"dataset", "seed", "labeled_images", "unlabeled_images", "val_images", "max_detections", "zoom",
"measured_with", "rows": [{"name", "ap", "ap50", "params", "seconds"}, ...]}, with the rows measured so far.
A row may also have "stride" of its masks, "views" of an image, and further fields of `train.cost.Cost`.  It may have
figures of the data set's own evaluation (OFFICIAL) too.  "measured_with" of a row is a key of the ground truth and
settings behind its figures.  At the top level, it is the key of the row measured last.  Runs of earlier versions
may lack these and "zoom".  "fit": height and width that whole images are scaled into, instead of by "zoom"; missing
for other runs.  "true_labels" is true if hidden true labels stood in for a teacher's; else it is
missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sskd_fast.data.official_titles import OFFICIAL_TITLES
from sskd_fast.method import BASELINE, FINAL_STUDENTS, MATCHED_BASELINE, ROW_ORDER, STAGE, stage_of, title_of, words_of
from sskd_fast.report.numbers import ap_text, count_text, is_number, seconds_text

Metrics = Mapping[str, Any]
Row = Mapping[str, Any]

# Key -> title of the figures that the data sets' own evaluations give.
OFFICIAL = {f"{judge}_{key}": title for judge, titles in OFFICIAL_TITLES.items() for key, title in titles.items()}
RECIPES = {
    BASELINE: "with steps and augmentation of its own",
    MATCHED_BASELINE: "with the steps and augmentation of distillation and refinement",
    "refined_student": "the distilled student, then the labelled images alone",
}


def measured_rows(metrics: Metrics) -> dict[str, Row]:
    """Name -> row, for the rows with a finite AP that compare; in the order of the method, unknown names last."""
    rows = {name: row for name, row in _rows_with_ap(metrics).items() if _compares(row, metrics)}
    return {name: rows[name] for name in [*ROW_ORDER, *rows] if name in rows}


def outdated_rows(metrics: Metrics) -> list[str]:
    """The names of the rows measured on other labels, or with other settings, than the row measured last."""
    return [name for name, row in _rows_with_ap(metrics).items() if not _compares(row, metrics)]


def _rows_with_ap(metrics: Metrics) -> dict[str, Row]:
    return {str(row["name"]): row for row in metrics.get("rows", []) if is_number(row.get("ap"))}


def _compares(row: Row, metrics: Metrics) -> bool:
    """True if a row was measured on the same ground truth and with the same settings as the row measured last."""
    return row.get("measured_with") == metrics.get("measured_with", row.get("measured_with"))


def parameter_ratio(teacher: Row, student: Row) -> float | None:
    """The teacher's parameters divided by the student's; None if one is unknown, as those of a results file are."""
    large, small = teacher.get("params"), student.get("params")
    return large / small if is_number(large) and is_number(small) and min(large, small) > 0 else None


def final_student(rows: Mapping[str, Row]) -> str | None:
    """The last measured stage of the student; None if none is measured yet."""
    return next((name for name in FINAL_STUDENTS if name in rows), None)


def figure_columns(rows: Mapping[str, Row]) -> dict[str, str]:
    """Keys and titles of the figures that the rows have: COCO's, then those of the data set's own evaluation."""
    official = {key: title for key, title in OFFICIAL.items() if any(is_number(row.get(key)) for row in rows.values())}
    return {"ap": "AP", "ap50": "AP50"} | official


def row_title(name: str, row: Row) -> str:
    """The title of a row: "Adapted teacher, as it labels (6 views)"."""
    return title_of(name) + (f" ({row['views']} views)" if is_number(row.get("views")) else "")


def images_of(row: str, metrics: Metrics) -> str:
    """The images that a row's model was trained on: "60 labelled + 1500 unlabelled images with pseudo-labels"."""
    stage = stage_of(row)
    if stage is None or not stage.budget:
        return "no image of this data set" if stage is not None else ""
    labeled, unlabeled = (metrics.get(f"{kind}_images", "the") for kind in ("labeled", "unlabeled"))
    learned = [part for part in (stage, STAGE.get(stage.start)) if part and part.labels_from]
    if not learned:
        return f"{labeled} labelled images"
    rows = {r["name"]: r for r in metrics.get("rows", [])}
    if rows.get(learned[0].name, {}).get("unlabeled_seen") == 0:
        return f"{labeled} labelled images (no pseudo-label was sure enough)"
    if metrics.get("true_labels"):
        return (
            f"{labeled} labelled + {unlabeled} unlabelled images with their hidden true labels, a bound and no result"
        )
    teacher = words_of(str(learned[0].labels_from)) if learned[0].labels_from in rows else "teacher"
    return f"{labeled} labelled + {unlabeled} unlabelled images with pseudo-labels of the {teacher}"


def recipe_of(row: str, figures: Row) -> str:
    """A phrase on how a row's model was made; "" if its images say it all, or for runs of earlier versions."""
    return RECIPES.get(row, "") if row in FINAL_STUDENTS or "steps" in figures else ""


def images_seen(row: Row) -> str:
    """The images in the batches of a row's training: "13 k", or labelled + unlabelled, "7.2 k + 14.4 k"."""
    labeled, unlabeled = row.get("labeled_seen"), row.get("unlabeled_seen")
    if not is_number(labeled):
        return "-"
    return count_text(labeled) + (f" + {count_text(unlabeled)}" if is_number(unlabeled) and unlabeled else "")


def cost_columns(rows: Mapping[str, Row]) -> dict[str, list[str]]:
    """Column title -> one cell for each row: parameters, training time, and the other training costs if known."""
    cells = {
        "parameters": [count_text(row.get("params")) for row in rows.values()],
        "training": [seconds_text(row.get("seconds")) for row in rows.values()],
    }
    if any(is_number(row.get("steps")) for row in rows.values()):
        cells |= {
            "CPU time": [seconds_text(row.get("cpu_seconds")) for row in rows.values()],
            "labelling": [seconds_text(row.get("label_seconds")) for row in rows.values()],
            "steps": [count_text(row.get("steps")) for row in rows.values()],
            "images seen": [images_seen(row) for row in rows.values()],
        }
    return cells


def table_text(metrics: Metrics) -> str:
    """The table of the measured models for a terminal: a header, then one line for each model."""
    rows = measured_rows(metrics)
    columns = {"model": [row_title(name, row) for name, row in rows.items()]}
    columns |= {title: [ap_text(row.get(key)) for row in rows.values()] for key, title in figure_columns(rows).items()}
    return plain_table(columns | cost_columns(rows))


def plain_table(columns: Mapping[str, list[str]]) -> str:
    """Columns under their titles; the first is flush left, the others flush right."""
    widths = [max(map(len, [title, *cells])) for title, cells in columns.items()]
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
