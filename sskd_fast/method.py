"""The method as a table: the stages, their order, their names and titles, and what each builds on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Start = Literal["pretrained", "backbone", "scratch", "distilled_student"]


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    command: the `--stage` it belongs to.  start: initial weights: pretrained, their backbone only, none, or another
    stage's.  labels_from: the stage whose model labels the unlabelled images.  semi, pixel: True if unlabelled images,
    and the contrastive loss, take part.  budget: entries of the configuration's `stages` whose steps are added up;
    empty for a model that is only evaluated.
    """

    name: str
    command: Literal["pretrain", "adapt", "distill", "refine"]
    model: Literal["teacher", "student"]
    start: Start
    labels_from: str | None
    semi: bool
    pixel: bool
    budget: tuple[str, ...]

    @property
    def title(self) -> str:
        """The name for readers: "refined_student" -> "Refined student"."""
        return title_of(self.name)

    @property
    def teaches(self) -> bool:
        """True if the stage's model labels the unlabelled images for another."""
        return any(stage.labels_from == self.name for stage in STAGES)

    @property
    def words(self) -> str:
        """The name within a sentence: "refined student"."""
        return words_of(self.name)


def words_of(name: str) -> str:
    """The name of a stage, or of any other row of results, within a sentence: "adapted teacher, as it labels".

    Of a student in the same views: "refined student, as the teacher labels".
    """
    in_views = ", as the teacher labels" if name.removesuffix("_views").endswith("student") else ", as it labels"
    return name.replace("zero_shot", "zero-shot").replace("_views", in_views).replace("_", " ")


def title_of(name: str) -> str:
    """The title of a stage, or of any other row of results: "refined_student" -> "Refined student"."""
    text = words_of(name)
    return text[:1].upper() + text[1:]


# A model fitted to the predictions of a teacher that cannot be trained. It then serves as the pretrained teacher.
FITTED = "fitted_teacher"
# fmt: off
# The supervised student with steps and augmentation of its own.
BASELINE = "supervised_student"
# The one with the steps and augmentation of the student's semi-supervised stages.
MATCHED_BASELINE = "matched_student"
BASELINES = (MATCHED_BASELINE, BASELINE)
# The student's own stages, last first.
FINAL_STUDENTS = ("refined_student", "distilled_student")
PRETRAINING = (
    #     name                  command     model      start      labels from  semi   pixel  budget
    Stage("pretrained_teacher", "pretrain", "teacher", "scratch", None,        False, False, ("pretrained_teacher",)),
    Stage("pretrained_student", "pretrain", "student", "scratch", None,        False, False, ("pretrained_student",)),
)
# Only in runs whose teacher is fitted to predictions; follows the zero-shot teacher.
FITTING = Stage(FITTED,         "adapt",   "teacher", "pretrained",        "zero_shot_teacher",  True,  False, (FITTED,))
STAGES = (
    #     name                  command    model      start                labels from           semi   pixel  budget
    Stage("zero_shot_teacher",  "adapt",   "teacher", "pretrained",        None,                 False, False, ()),
    Stage("supervised_teacher", "adapt",   "teacher", "pretrained",        None,                 False, True,  ("supervised_teacher",)),
    Stage("adapted_teacher",    "adapt",   "teacher", "pretrained",        "supervised_teacher", True,  True,  ("adapted_teacher",)),
    Stage("distilled_student",  "distill", "student", "backbone",          "adapted_teacher",    True,  True,  ("distilled_student",)),
    Stage("refined_student",    "refine",  "student", "distilled_student", None,                 False, False, ("refined_student",)),
    Stage(MATCHED_BASELINE,     "distill", "student", "backbone",          None,                 False, False, FINAL_STUDENTS[::-1]),
    Stage(BASELINE,             "distill", "student", "backbone",          None,                 False, False, (BASELINE,)),
)
# fmt: on
STAGE = {stage.name: stage for stage in (*PRETRAINING, FITTING, *STAGES)}
# Values of `--stage`: the whole method, one command's stages, or a fresh evaluation.
COMMANDS = ("all", "pretrain", "adapt", "distill", "refine", "evaluate")
# The stages that every run has; other stages have rows only if they ran.
EVERY_RUN = frozenset(stage.name for stage in STAGES)
# Trained models of the target data have a second row of results, averaged over the views in which the teacher labels.
IN_VIEWS = {f"{stage.name}_views": stage.name for stage in STAGES if stage.budget}
# Results appear in the table's order, with the baselines before the students that are compared with them.
ROW_ORDER = tuple(
    name
    for stage in sorted(
        (STAGES[0], FITTING, *STAGES[1:]),
        key=lambda s: (s.model == "student", s.model == "student" and s.name not in BASELINES),
    )
    for name in (stage.name, *(row for row, model in IN_VIEWS.items() if model == stage.name))
)
# The teacher with and without its own pseudo-labels.
ADAPTATION = ("adapted_teacher", "supervised_teacher")
_OTHERS = tuple(row for row in ROW_ORDER if IN_VIEWS.get(row, row) not in FINAL_STUDENTS)
# Pairs of rows whose AP is compared, with an interval: a model and its reference. A teacher is also compared as it
# labels, with a student in the same views and in one.
COMPARISONS = (
    *((student, row) for student in FINAL_STUDENTS for row in _OTHERS if IN_VIEWS.get(row) not in BASELINES),
    *((f"{student}_views", row) for student in FINAL_STUDENTS for row in _OTHERS if row in IN_VIEWS),
    *((f"{model}{row}", f"{other}{row}") for model, other in (FINAL_STUDENTS, ADAPTATION) for row in ("", "_views")),
)


def stage_of(row: str) -> Stage | None:
    """The stage whose model a row of results measures; None for an unknown row."""
    return STAGE.get(IN_VIEWS.get(row, row))


def views_rows(stages: Collection[str]) -> set[str]:
    """The rows that measure the models of these stages averaged over views."""
    return {row for row, model in IN_VIEWS.items() if model in stages}


def dependents(stage: Stage) -> set[str]:
    """The names of the stages that build on a stage's model, directly or not; a new model makes their results stale."""
    direct = [s for s in (FITTING, *STAGES) if stage.name in _parents(s)]
    return {s.name for s in direct}.union(*(dependents(s) for s in direct))


def chain_of(stage: Stage) -> set[str]:
    """The names of a stage and of all trained stages that it builds on, directly or not."""
    return {stage.name}.union(*(chain_of(STAGE[name]) for name in _parents(stage) if STAGE[name].budget))


def _parents(stage: Stage) -> set[str]:
    """The names of the stages that a stage builds on directly, including the fitted teacher if there may be one."""
    stands_in = stage.start == "pretrained" and bool(stage.budget) and stage.name != FITTED
    named = (stage.start, stage.labels_from, FITTED if stands_in else None)
    return {name for name in named if name in STAGE}


def stages_of(command: str, *, fitted: bool = False) -> tuple[Stage, ...]:
    """The stages that a command runs, in the table's order.  fitted: True if a teacher is fitted to predictions."""
    of_run = (STAGES[0], FITTING, *STAGES[1:]) if fitted else STAGES
    return of_run if command == "all" else tuple(s for s in (*PRETRAINING, *of_run) if s.command == command)
