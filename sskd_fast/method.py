"""The method as a table: the stages, their order, their names and titles, and what each builds on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Start = Literal["pretrained", "backbone", "scratch", "distilled_student"]


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    command: the `--stage` it belongs to.  start: weights at the beginning: the foundation weights, their backbone
    alone, none, or another stage's.  labels_from: the stage whose model labels the unlabelled images.  budget: entries
    of the configuration's `stages` whose steps add up; none for a model that is only evaluated.
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
        return _words(self.name)


def _words(name: str) -> str:
    return name.replace("zero_shot", "zero-shot").replace("_", " ")


def title_of(name: str) -> str:
    """The title of a stage, or of any other row of results: "refined_student" -> "Refined student"."""
    return _words(name).capitalize()


# The model that is fitted to the predictions of a teacher that cannot be trained, and stands for a pretrained one then.
FITTED = "fitted_teacher"
# fmt: off
# The best student of the labels alone, and one trained as long and on the same views as the student's own stages.
BASELINE, MATCHED_BASELINE = "supervised_student", "matched_student"
# The student's own stages, last first.
FINAL_STUDENTS = ("refined_student", "distilled_student")
PRETRAINING = (
    #     name                  command     model      start      labels from  semi   pixel  budget
    Stage("pretrained_teacher", "pretrain", "teacher", "scratch", None,        False, False, ("pretrained_teacher",)),
    Stage("pretrained_student", "pretrain", "student", "scratch", None,        False, False, ("pretrained_student",)),
)
STAGES = (
    #     name                  command    model      start                labels from           semi   pixel  budget
    Stage("zero_shot_teacher",  "adapt",   "teacher", "pretrained",        None,                 False, False, ()),
    Stage(FITTED,               "adapt",   "teacher", "pretrained",        "zero_shot_teacher",  True,  False, (FITTED,)),
    Stage("supervised_teacher", "adapt",   "teacher", "pretrained",        None,                 False, True,  ("supervised_teacher",)),
    Stage("adapted_teacher",    "adapt",   "teacher", "pretrained",        "supervised_teacher", True,  True,  ("adapted_teacher",)),
    Stage("distilled_student",  "distill", "student", "backbone",          "adapted_teacher",    True,  True,  ("distilled_student",)),
    Stage("refined_student",    "refine",  "student", "distilled_student", None,                 False, False, ("refined_student",)),
    Stage(BASELINE,             "distill", "student", "backbone",          None,                 False, False, (BASELINE,)),
    Stage(MATCHED_BASELINE,     "distill", "student", "backbone",          None,                 False, False, FINAL_STUDENTS[::-1]),
)
# fmt: on
STAGE = {stage.name: stage for stage in (*PRETRAINING, *STAGES)}
# What `--stage` takes: a stage's command, all of the method, or measuring anew.
COMMANDS = ("all", "pretrain", "adapt", "distill", "refine", "evaluate")
# Results are shown as the table goes, the baselines before the students that are compared with them.
ROW_ORDER = (
    *(stage.name for stage in STAGES if stage.model == "teacher"),
    *sorted((stage.name for stage in STAGES if stage.model == "student"), key=lambda name: name in FINAL_STUDENTS),
)


def dependents(stage: Stage) -> set[str]:
    """The names of the stages that build on a stage's model, directly or not: its results outdate theirs."""
    direct = [s for s in STAGES if stage.name in (s.start, s.labels_from)]
    if stage.name == FITTED:
        direct += [s for s in STAGES if s.start == "pretrained" and s.budget and s != stage]
    return {s.name for s in direct}.union(*(dependents(s) for s in direct))


def stages_of(command: str, *, fitted: bool = True) -> tuple[Stage, ...]:
    """The stages that a command runs, in the table's order; fitted: if the teacher is fitted to predictions first."""
    of_command = STAGES if command == "all" else [s for s in (*PRETRAINING, *STAGES) if s.command == command]
    return tuple(s for s in of_command if fitted or s.name != FITTED)
