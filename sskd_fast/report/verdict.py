"""What the rows of metrics.json say: titles, numbers as text, a table, and the verdict in words.

metrics: {"dataset", "seed", "labeled_images", "unlabeled_images", "val_images", "max_detections",
"rows": [{"name", "ap", "ap50", "params", "seconds"}, ...]}, with as many rows as are measured so far; where the data
set has an evaluation of its own, with its figures too (OFFICIAL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from sskd_fast.data.official_titles import OFFICIAL_TITLES
from sskd_fast.method import BASELINE, FINAL_STUDENTS, MATCHED_BASELINE, ROW_ORDER, title_of

Metrics = Mapping[str, Any]
Row = Mapping[str, Any]

# Keys of figures by the evaluations of data sets themselves, and their titles.
OFFICIAL = {f"{judge}_{key}": title for judge, titles in OFFICIAL_TITLES.items() for key, title in titles.items()}

# What one more seed may change at the scale of the embedded data set; larger sets vary less.
CHANCE_AP = 1.5
# On fewer images than these, what other images would give cannot be told from them.
FEW_IMAGES = 10
# Figures in the files are rounded to a thousandth.
_ROUNDING = 0.005


TRAINED_ON = {
    "zero_shot_teacher": "as pretrained; has seen no label of this data set",
    "supervised_teacher": "fine-tuned on the labelled images",
    "adapted_teacher": "labelled images and its own pseudo-labels",
    BASELINE: "the baseline: labelled images alone, in steps and views of its own",
    MATCHED_BASELINE: "labelled images alone, in the steps and views of both student stages",
    "distilled_student": "labelled images and the adapted teacher's pseudo-labels",
    "refined_student": "distilled, then the labelled images once more",
}


@dataclass(frozen=True)
class Verdict:
    """tone: better, even or worse than the supervised student; open while that is not known, or cannot be."""

    tone: Literal["better", "even", "worse", "open"]
    headline: str
    sentences: list[str]


def measured_rows(metrics: Metrics) -> dict[str, Row]:
    """The rows with a finite AP, by name, in the order of the method; rows of other names come last."""
    rows = {str(row["name"]): row for row in metrics.get("rows", []) if is_number(row.get("ap"))}
    return {name: rows[name] for name in [*ROW_ORDER, *rows] if name in rows}


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number (metrics of a running stage may be null or nan)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count_text(value: object) -> str:
    """A count in three significant digits: 1059000 -> "1.06 M"; a dash where it is unknown."""
    if not is_number(value):
        return "-"
    number = value
    for unit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.0f}"


def ap_text(value: object) -> str:
    """An AP in percent with one decimal; a dash where it is unknown."""
    return f"{value:.1f}" if is_number(value) else "-"


def seconds_text(value: object) -> str:
    """Seconds below ten minutes, else hours and minutes: 42 -> "42 s", 5400 -> "1 h 30 min"."""
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


def parameter_ratio(teacher: Row, student: Row) -> float | None:
    """How many times more parameters the teacher has than the student; None where they are not known."""
    large, small = teacher.get("params"), student.get("params")
    return large / small if is_number(large) and is_number(small) and small > 0 else None


def final_student(rows: Mapping[str, Row]) -> str | None:
    """The last stage of the student that is measured; None before any."""
    return next((name for name in FINAL_STUDENTS if name in rows), None)


def verdict(metrics: Metrics, details: Mapping[str, Any] | None = None) -> Verdict:
    """Whether distillation helped: the final student against the supervised student and against its teacher.

    details: the content of details.json; its "gain" of the final student, where it is that of these rows, says whether
    the validation images are enough to tell.
    """
    rows = measured_rows(metrics)
    student, baseline = final_student(rows), rows.get(BASELINE)
    if student is None or baseline is None:
        return _open_verdict(metrics, rows)
    gain = rows[student]["ap"] - baseline["ap"]
    few = is_number(metrics.get("val_images")) and metrics["val_images"] < FEW_IMAGES
    interval = None if few else _interval(details, student, gain)
    tone, finding = _finding(gain, few, interval)
    plainly = "" if gain > 0 else "the student is not better, "
    preposition = "over" if tone == "better" else "against"
    headline = (
        f"{finding}: {plainly}{difference_text(gain)} AP {preposition} the same student trained on the labels alone."
    )
    sentences = [_student_sentence(metrics, rows, student), *_interval_sentence(interval)]
    sentences += _teacher_sentences(rows, student, few)
    sentences += _stage_sentences(rows)
    sentences.append(f"This is one seed: a difference under about {CHANCE_AP} AP may be chance.")
    return Verdict(tone, headline, sentences)


def _finding(
    gain: float, few: bool, interval: tuple[float, float] | None
) -> tuple[Literal["better", "even", "worse", "open"], str]:
    """Tone and first words for a gain in AP; few: too few images for any finding."""
    if not few and abs(gain) < CHANCE_AP:
        return "even", "Distillation made no clear difference"
    if few or (interval is not None and interval[0] <= 0 <= interval[1]):
        return "open", "The validation images are too few to tell whether distillation helped"
    return ("better", "Distillation helped") if gain > 0 else ("worse", "Distillation did not help")


def _interval(details: Mapping[str, Any] | None, student: str, gain: float) -> tuple[float, float] | None:
    """Ends of the gain's interval; None where it is not known, or was computed for other models than the rows'."""
    found = (details or {}).get(student, {}).get("gain") or {}
    ap, low, high = (found.get(key) for key in ("ap", "low", "high"))
    if not (is_number(ap) and is_number(low) and is_number(high)) or abs(ap - gain) > _ROUNDING:
        return None
    return low, high


def _interval_sentence(interval: tuple[float, float] | None) -> list[str]:
    if interval is None:
        return []
    low, high = (difference_text(end) for end in interval)
    return [
        f"As far as the choice of validation images goes, the difference lies between {low} and {high} AP "
        "(95 % confidence interval, for these two trained models)."
    ]


def verdict_words(metrics: Metrics, details: Mapping[str, Any] | None = None) -> str:
    """The verdict as one paragraph: did distillation help, against which baseline, and against the teacher.

    metrics, details: as of `verdict`; rows may be missing, and the words then say which.
    """
    result = verdict(metrics, details)
    return " ".join([result.headline, *result.sentences])


def figure_columns(rows: Mapping[str, Row]) -> dict[str, str]:
    """Keys and titles of the figures that the rows have: COCO's, then those of the data set's own evaluation."""
    official = {key: title for key, title in OFFICIAL.items() if any(is_number(row.get(key)) for row in rows.values())}
    return {"ap": "AP", "ap50": "AP50"} | official


def table_text(metrics: Metrics) -> str:
    """The table of the measured models for a terminal, one line each under a header."""
    rows = measured_rows(metrics)
    figures = figure_columns(rows)
    lines = [("model", *figures.values(), "parameters", "seconds")]
    for name, row in rows.items():
        seconds = f"{row['seconds']:.0f}" if is_number(row.get("seconds")) else "-"
        lines.append(
            (title_of(name), *(ap_text(row.get(key)) for key in figures), count_text(row.get("params")), seconds)
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _open_verdict(metrics: Metrics, rows: Mapping[str, Row]) -> Verdict:
    missing = [title_of(name).lower() for name in ROW_ORDER if name not in rows]
    sentences = []
    if rows:
        best = max(rows, key=lambda name: rows[name]["ap"])
        sentences.append(f"Best so far: {title_of(best).lower()} with {ap_text(rows[best]['ap'])} AP.")
    sentences.append(f"Not measured yet: {', '.join(missing)}.")
    measured = len(ROW_ORDER) - len(missing)
    return Verdict("open", f"No verdict yet: {measured} of {len(ROW_ORDER)} models are measured.", sentences)


def _student_sentence(metrics: Metrics, rows: Mapping[str, Row], student: str) -> str:
    on = f" on {metrics['val_images']} validation images" if "val_images" in metrics else ""
    labels = (
        f"the {metrics['labeled_images']} labelled images" if "labeled_images" in metrics else "the labelled images"
    )
    return (
        f"The {title_of(student).lower()} reaches {ap_text(rows[student]['ap'])} AP{on}; given {labels} alone, "
        f"the same network reaches {ap_text(rows[BASELINE]['ap'])}."
    )


def _teacher_sentences(rows: Mapping[str, Row], student: str, few: bool) -> list[str]:
    """The student against the teacher that it was distilled from; few: on images too few for more than their count."""
    teacher = next((name for name in ("adapted_teacher", "supervised_teacher") if name in rows), None)
    if teacher is None:
        return ["The adapted teacher was not measured, so the student is not compared with it."]
    ahead = rows[student]["ap"] - rows[teacher]["ap"]
    named = f"the {title_of(teacher).lower()} ({ap_text(rows[teacher]['ap'])} AP)"
    if ahead >= CHANCE_AP:
        text = f"It beats {named} by {ahead:.1f} AP"
    elif ahead > -CHANCE_AP:
        text = f"It is level with {named}, at a difference of {difference_text(ahead)} AP"
    else:
        text = f"It stays {-ahead:.1f} AP below {named}"
    ratio = parameter_ratio(rows[teacher], rows[student])
    if ratio is not None:
        small, large = count_text(rows[student]["params"]), count_text(rows[teacher]["params"])
        text += f", with {ratio:.1f} times fewer parameters ({small} against {large})"
    if few:
        text = f"On these few images {text[0].lower()}{text[1:]}"
    return [text + ".", *_baseline_sentence(rows[BASELINE], rows[teacher])]


def _baseline_sentence(baseline: Row, teacher: Row) -> list[str]:
    """What a teacher has to teach whose AP the labels alone reach."""
    if baseline["ap"] < teacher["ap"]:
        return []
    text = f"The labels alone bring the student to the teacher's AP ({ap_text(baseline['ap'])})"
    ours, theirs = baseline.get("ap50"), teacher.get("ap50")
    if is_number(ours) and is_number(theirs) and theirs > ours:
        text += f", but not to its AP50 ({ap_text(ours)} against {ap_text(theirs)})"
        text += "; the teacher finds more objects, with less exact masks"
    return [text + "."]


def _stage_sentences(rows: Mapping[str, Row]) -> list[str]:
    """Stages that cost AP: adapting the teacher, refining the student."""
    sentences = []
    for before, after, words in (
        ("supervised_teacher", "adapted_teacher", "Adapting the teacher with its own pseudo-labels cost it"),
        ("distilled_student", "refined_student", "Refining the student on the labelled images cost it"),
    ):
        if before in rows and after in rows:
            change = rows[after]["ap"] - rows[before]["ap"]
            if change <= -0.05:
                sentences.append(f"{words} {-change:.1f} AP (from {ap_text(rows[before]['ap'])}).")
    return sentences
