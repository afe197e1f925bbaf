"""The verdict in words: the student against both supervised students and its teacher, claiming only what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sskd_fast.method import BASELINES, EVERY_RUN, FINAL_STUDENTS, ROW_ORDER, STAGE, chain_of, stage_of, words_of
from sskd_fast.report.numbers import ap_text, count_text, difference_text, is_number, seconds_text
from sskd_fast.report.table import (
    Metrics,
    Row,
    final_student,
    images_of,
    measured_rows,
    outdated_rows,
    parameter_ratio,
    recipe_of,
)

# Seed noise in AP at the scale of the embedded data set; larger sets vary less.
CHANCE_AP = 1.5
# With fewer validation images than this, a finding says nothing about other images.
FEW_IMAGES = 10
# The rows of a student's teacher; the row that best reflects the quality of its labels comes first.
TEACHERS = (
    "adapted_teacher_views",
    "adapted_teacher",
    "supervised_teacher_views",
    "supervised_teacher",
    "zero_shot_teacher",
)

Tone = Literal["better", "even", "worse", "open"]


@dataclass(frozen=True)
class Verdict:
    """A headline and its reasons.

    tone: "better" or "worse" than both supervised students; "even" if neither is shown; "open" if that is unknown.
    """

    tone: Tone
    headline: str
    sentences: list[str]


@dataclass(frozen=True)
class Difference:
    """The AP of one row minus that of another. low, high: its 95 % interval over validation images, None if unknown."""

    ap: float
    low: float | None = None
    high: float | None = None

    @property
    def shown(self) -> bool:
        """True if the interval is known and excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def text(self) -> str:
        """ "+5.7 AP (95 % interval +2.1 to +9.0)"."""
        if self.low is None or self.high is None:
            return f"{difference_text(self.ap)} AP"
        ends = f"{difference_text(self.low)} to {difference_text(self.high)}"
        return f"{difference_text(self.ap)} AP (95 % interval {ends}{'' if self.shown else ', no difference shown'})"


@dataclass(frozen=True)
class Figures:
    """The figures behind the verdict: metrics.json, details.json, and the measured rows."""

    metrics: Metrics
    details: Mapping[str, Any]
    rows: Mapping[str, Row]

    @property
    def few(self) -> bool:
        """True if there are too few validation images for any finding."""
        return is_number(self.metrics.get("val_images")) and self.metrics["val_images"] < FEW_IMAGES

    @property
    def teacher(self) -> str | None:
        """The teacher's row to compare students with: as it labels, if that has been measured."""
        return next((name for name in TEACHERS if name in self.rows), None)

    def teacher_beside(self, student: str) -> str | None:
        """The teacher's row to compare a student's plain row with: plain, too, if both are also measured in views."""
        plain = (self.teacher or "").removesuffix("_views")
        return plain if plain in self.rows and f"{student}_views" in self.rows else self.teacher

    def difference(self, model: str, against: str) -> Difference:
        """The difference of two rows as measured, with its interval if details.json has it."""
        found = self.entry(model, against, reduced=False)
        if found is None:
            return Difference(self.rows[model]["ap"] - self.rows[against]["ap"])
        return difference_of(found, self.few)

    def entry(self, model: str, against: str, *, reduced: bool) -> Mapping[str, Any] | None:
        """The entry of "gains" for two rows; reduced: the entry at equal mask stride, if strides differ."""
        for gain in self.details.get("gains", []):
            if (gain["model"], gain["against"], gain["stride"] is not None) == (model, against, reduced):
                return gain if is_number(gain["ap"]) else None
        return None


def difference_of(gain: Mapping[str, Any], few: bool = False) -> Difference:
    """The difference that an entry of "gains" holds; few: True if there are too few images for an interval."""
    low, high = gain["low"], gain["high"]
    known = is_number(low) and is_number(high) and not few
    return Difference(gain["ap"], low if known else None, high if known else None)


def verdict(metrics: Metrics, details: Mapping[str, Any] | None = None) -> Verdict:
    """Compare the final student with both supervised students and with its teacher.

    details: the content of details.json, whose "gains" hold the intervals over validation images.
    """
    figures = Figures(metrics, details or {}, measured_rows(metrics))
    student = final_student(figures.rows)
    baselines = [name for name in reversed(BASELINES) if name in figures.rows]
    if student is None or not baselines:
        return _open_verdict(figures)
    # The better of the two supervised students is the one to beat.
    rival = max(baselines, key=lambda name: float(figures.rows[name]["ap"]))
    gain = figures.difference(student, rival)
    tone, finding = _finding(gain, figures.few)
    over = "over" if tone == "better" else "against"
    sentences = [
        _training_sentence(figures, student),
        _gains_sentence(figures, student, [*baselines, figures.teacher_beside(student)]),
        _equal_views_sentence(figures, student, baselines),
        _equal_stride_sentence(figures, student),
        _size_sentence(figures, student),
        *_stage_sentences(figures),
        _cost_sentence(figures, student, rival),
        _outdated_sentence(metrics),
        f"This is one seed: a difference under about {CHANCE_AP} AP may be chance.",
    ]
    return Verdict(tone, f"{finding}: {gain.text} {over} the {words_of(rival)}.", [s for s in sentences if s])


def _finding(gain: Difference, few: bool) -> tuple[Tone, str]:
    """Tone and first words for a difference in AP; few: True if there are too few images for any finding."""
    if few:
        return "open", "Too few validation images for a verdict"
    if gain.low is not None and not gain.shown:
        return "even", "No gain shown"
    if abs(gain.ap) < CHANCE_AP:
        return "even", "No clear gain"
    return ("better", "Distillation helped") if gain.ap > 0 else ("worse", "Distillation did not help")


def _training_sentence(figures: Figures, student: str) -> str:
    """A sentence on the training images of each compared model; models with the same images come together."""
    groups: dict[str, list[str]] = {}
    for name in (student, *BASELINES[::-1], figures.teacher):
        stage = None if name is None else stage_of(name)
        if name is None or stage is None or name not in figures.rows:
            continue
        recipe = "" if name == student else recipe_of(name, figures.rows[name])
        described = f"the {stage.words}" + (f" ({recipe})" if recipe else "")
        groups.setdefault(images_of(name, figures.metrics), []).append(described)
    parts = [f"{' and '.join(names)} on {images}" for images, names in groups.items()]
    return f"Trained: {'; '.join(parts)}."


def _gains_sentence(figures: Figures, student: str, others: Sequence[str | None]) -> str:
    on = f" on {figures.metrics['val_images']} validation images" if "val_images" in figures.metrics else ""
    gains = [f"{figures.difference(student, name).text} against {_described(figures, name)}" for name in others if name]
    text = f"The {words_of(student)} reaches {ap_text(figures.rows[student]['ap'])} AP{on}: {'; '.join(gains)}."
    if any(figures.difference(student, name).low is not None for name in others if name):
        text += " Intervals are over the choice of validation images, for these trained models."
    return text if figures.teacher else f"{text} No teacher was measured, so the student is not compared with one."


def _described(figures: Figures, name: str) -> str:
    row = figures.rows[name]
    views = f", {row['views']} views of an image" if is_number(row.get("views")) else ""
    return f"the {words_of(name)} ({ap_text(row['ap'])} AP{views})"


def _equal_views_sentence(figures: Figures, student: str, baselines: Sequence[str]) -> str:
    """A sentence on student, teacher and baselines in the views in which the teacher labels; "" if not measured."""
    row = figures.rows.get(f"{student}_views")
    if row is None:
        return ""
    others = [name for name in (*(f"{b}_views" for b in baselines), figures.teacher) if name in figures.rows]
    gains = [
        f"{figures.difference(f'{student}_views', name).text} against the {words_of(name.removesuffix('_views'))} "
        f"({ap_text(figures.rows[name]['ap'])} AP)"
        for name in others
        if name and name.endswith("_views")
    ]
    views = row.get("views", 1)
    seen = f"Averaged over {views} views of each image, as" if views > 1 else "In the view of each image in which"
    return f"{seen} the teacher labels, the {words_of(student)} reaches {ap_text(row['ap'])} AP" + (
        f": {'; '.join(gains)}, in the same views." if gains else "."
    )


def _equal_stride_sentence(figures: Figures, student: str) -> str:
    """A sentence on student and teacher at the coarser of their strides; "" if they have the same stride."""
    teacher = figures.teacher_beside(student)
    found = None if teacher is None else figures.entry(student, teacher, reduced=True)
    if teacher is None or found is None:
        return ""
    stride, own = found["stride"], figures.rows[student]["stride"]
    whose, finer = ("student", "teacher") if own == stride else ("teacher", "student")
    ceilings = figures.details.get("ceilings", {})
    limits = [f"{ap_text(ap)} AP at stride {text}" for text, ap in ceilings.items()]
    return (
        f"At the {whose}'s stride {stride:g}, to which the {finer}'s masks are brought, the student has "
        f"{ap_text(found['model_ap'])} AP, against {ap_text(found['against_ap'])} of the {words_of(teacher)}: "
        f"{difference_of(found, figures.few).text}."
        + (f" Perfect masks reach {' and '.join(limits)}." if limits else "")
    )


def _size_sentence(figures: Figures, student: str) -> str:
    teacher = figures.teacher
    ratio = None if teacher is None else parameter_ratio(figures.rows[teacher], figures.rows[student])
    if ratio is None or teacher is None:
        return ""
    small, large = (count_text(figures.rows[name]["params"]) for name in (student, teacher))
    return f"The student has {ratio:.1f} times fewer parameters than the teacher ({small} against {large})."


def _stage_sentences(figures: Figures) -> list[str]:
    """Sentences on the changes from adapting the teacher and from refining the student."""
    refined, distilled = FINAL_STUDENTS
    return [
        f"{words}: {figures.difference(after, before).text} against the {words_of(before)}."
        for before, after, words in (
            ("supervised_teacher", "adapted_teacher", "Adapting the teacher with pseudo-labels"),
            (distilled, refined, "Refining the student on the labelled images"),
        )
        if before in figures.rows and after in figures.rows
    ]


def _cost_sentence(figures: Figures, student: str, rival: str) -> str:
    """The cost of the student's whole chain against the supervised student; "" if a part of it is unknown."""
    chain = [figures.rows[name] for name in ROW_ORDER if name in chain_of(STAGE[student]) and name in figures.rows]
    if not all(is_number(row.get("steps")) for row in (*chain, figures.rows[rival])):
        return ""
    return (
        f"Cost of the chain up to the {words_of(student)}: {_cost_text(chain)}; of the {words_of(rival)}: "
        f"{_cost_text([figures.rows[rival]])}."
    )


def _cost_text(rows: Sequence[Row]) -> str:
    keys = ("steps", "labeled_seen", "unlabeled_seen", "seconds", "cpu_seconds", "label_seconds")
    steps, labeled, unlabeled, seconds, cpu, labelling = (sum(row[key] for row in rows) for key in keys)
    seen = f"{count_text(labeled)} labelled" + (f" and {count_text(unlabeled)} unlabelled" if unlabeled else "")
    time = f"{seconds_text(seconds)} of training ({seconds_text(cpu)} of CPU)"
    time += f" and {seconds_text(labelling)} of labelling" if labelling else ""
    return f"{count_text(steps)} steps, {seen} images seen, {time}"


def _outdated_sentence(metrics: Metrics) -> str:
    """A sentence on the rows left out of verdict and tables, since their figures do not compare with the others."""
    names = [words_of(name) for name in outdated_rows(metrics)]
    if not names:
        return ""
    return (
        f"Left out, since measured on other labels or with other settings: {', '.join(names)}; --stage evaluate "
        "measures all models again."
    )


def verdict_words(metrics: Metrics, details: Mapping[str, Any] | None = None) -> str:
    """The verdict as one paragraph.

    metrics, details: as for `verdict`; rows may be missing, and the paragraph then names them.
    """
    result = verdict(metrics, details)
    return " ".join([result.headline, *result.sentences])


def _open_verdict(figures: Figures) -> Verdict:
    stages = [name for name in ROW_ORDER if name in EVERY_RUN]
    missing = [words_of(name) for name in stages if name not in figures.rows]
    sentences = []
    if figures.rows:
        best = max(figures.rows, key=lambda name: float(figures.rows[name]["ap"]))
        sentences.append(f"Best so far: {words_of(best)} with {ap_text(figures.rows[best]['ap'])} AP.")
    sentences.append(f"Not measured yet: {', '.join(missing)}.")
    sentences += [sentence for sentence in [_outdated_sentence(figures.metrics)] if sentence]
    measured = len(stages) - len(missing)
    return Verdict("open", f"No verdict yet: {measured} of {len(stages)} models are measured.", sentences)
