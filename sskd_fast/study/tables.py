"""The tables of the studies: the question of each, and its rows as settings of the one method."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sskd_fast.method import BASELINE, FINAL_STUDENTS, FITTED, MATCHED_BASELINE

TEACHERS = ("zero_shot_teacher", FITTED, "supervised_teacher", "adapted_teacher")
REFINED, DISTILLED = FINAL_STUDENTS
CHAIN = (DISTILLED, REFINED)

LABELS_ON, LABELS_OFF = "train.lam_semi=1", "train.lam_semi=0"
# The weight of L_pxl is set by its share of the gradient. A fixed weight would be too large for one form of the loss,
# and negligible for another.
PIXEL_ON = ("train.lam_pxl=0.1", "train.pxl_gradient_share=0.15")
PIXEL_OFF = ("train.lam_pxl=0", "train.pxl_gradient_share=0")
# The contrastive loss as the method has it: fused scores, 200 negatives of other images, all pixels of a coarse map.
AS_WRITTEN = (
    "contrast.form=sampled",
    "contrast.cues=fused",
    "contrast.scope=other",
    "contrast.num_negatives=200",
    "contrast.max_anchors=0",
    "student.embedding_level=2",
)
# Masks of pseudo-labels have weight 0.2, and pseudo-labels fade out in the last 30 % of the distillation.
FADED = ("train.semi_fade=0.3", "train.semi_masks=0.2")
# Hidden true labels in place of a teacher's, with full weight to the end.
TRUE_LABELS = ("pseudo_labels.truth=true", "train.semi_masks=1", "train.semi_fade=0")
# The student's own labels start after this share of its distillation.
BURN_IN = "online.start=0.3"


@dataclass(frozen=True)
class Row:
    """A model and the settings that set it apart.

    result: the stage whose model is measured.  teaching: stages of the part that rows share; empty if there is no
    teacher.  teacher: settings of that part and of the data; they hold for the student as well.  stages, student: the
    stages that follow, and the settings on top of all others for them.  Settings are overrides of the command line;
    {batch} stands for the images in a step of the student's distillation.
    share: of the labels to keep, 0 for all that the data set has.  against: the row to compare with, "" for the table's
    reference.  time_of: train for the same wall-clock time as this row and all that it builds on.  longer: the
    student is distilled for this many times the study's own number of steps, in place of any the row's settings name.
    """

    name: str
    result: str = REFINED
    stages: tuple[str, ...] = CHAIN
    student: tuple[str, ...] = ()
    teaching: tuple[str, ...] = TEACHERS
    teacher: tuple[str, ...] = ()
    share: float = 0.0
    against: str = ""
    time_of: str = ""
    longer: float = 1.0


@dataclass(frozen=True)
class Table:
    """A question and the rows that answer it.

    reference: the row to compare others with.  without_pixel: the row to compare the time of their steps with.
    columns: figures shown in addition to those of every table.
    """

    name: str
    question: str
    reference: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    without_pixel: str = ""

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def against(self, row: Row) -> str:
        """The name of the row to compare a row with; its own name if there is none."""
        return row.against or self.reference


def _ablations() -> tuple[Row, ...]:
    pairs = (
        ("neither", (LABELS_OFF, *PIXEL_OFF), "both"),
        ("pseudo-labels", (LABELS_ON, *PIXEL_OFF), "neither"),
        ("L_pxl", (LABELS_OFF, *PIXEL_ON), "neither"),
        ("both", (LABELS_ON, *PIXEL_ON), "pseudo-labels"),
    )
    teachers = [
        Row(f"teacher {name}", "adapted_teacher", (), teacher=settings, against=f"teacher {other}")
        for name, settings, other in pairs
    ]
    students = [
        Row(f"student {name}", DISTILLED, (DISTILLED,), settings, against=f"student {other}")
        for name, settings, other in pairs
    ]
    return (*teachers, *students)


def _distilled(name: str, *student: str) -> Row:
    return Row(name, DISTILLED, (DISTILLED,), student)


MATCHED = Row("supervised as many steps", MATCHED_BASELINE, (MATCHED_BASELINE,), teaching=())


def _labels() -> tuple[Row, ...]:
    rows = []
    for share in (0.02, 0.05, 0.1, 0.3):
        alone, matched = (f"{100 * share:g} % {name}" for name in ("supervised", "supervised as many steps"))
        rows.append(Row(alone, BASELINE, (BASELINE,), teaching=(), share=share, against=matched))
        rows.append(replace(MATCHED, name=matched, share=share, against=matched))
        rows.append(Row(f"{100 * share:g} % ours", share=share, against=matched))
    rows.append(
        Row(
            "100 %",
            DISTILLED,
            (DISTILLED,),
            TRUE_LABELS,
            teaching=(),
            share=0.3,
            against="30 % supervised as many steps",
        )
    )
    return tuple(rows)


def _steps() -> tuple[Row, ...]:
    rows = []
    for factor in (1, 2, 4):
        name = f"{factor} x steps"
        rows.append(replace(_distilled(name), longer=factor))
        rows.append(replace(MATCHED, name=f"{name} on labels alone", longer=factor, against=name))
    return tuple(rows)


BASELINES = (
    Row("supervised", BASELINE, (BASELINE,), teaching=()),
    MATCHED,
    Row("self-training", teaching=(BASELINE,), teacher=(f"pseudo_labels.teacher={BASELINE}",)),
    Row("mean teacher", teaching=(), student=("pseudo_labels.teacher=none", BURN_IN)),
    Row(
        "unlabelled alone",
        student=(f"stages.{DISTILLED}.labeled_batch=0", f"stages.{DISTILLED}.unlabeled_batch={{batch}}"),
    ),
    Row("burn-in and EMA", student=(BURN_IN,)),
    Row("ours"),
)


def _as_long() -> tuple[Row, ...]:
    timed = [row for row in BASELINES if row.name not in ("ours", "supervised as many steps")]
    own_steps = {"supervised": ("baseline.folds=0",)}
    rows = [replace(row, student=own_steps.get(row.name, row.student), time_of="ours") for row in timed]
    return (*rows, Row("ours"))


TABLES = {
    table.name: table
    for table in (
        Table("ablations", "Do pseudo-labels and L_pxl help, alone and together?", "student both", _ablations()),
        Table(
            "stages", "Which of the three stages is needed?", "all",
            (
                Row("no distillation", BASELINE, (BASELINE,), teaching=()),
                Row("distillation alone", DISTILLED, student=("pseudo_labels.teacher=zero_shot_teacher",)),
                Row("no teacher adaptation", student=("pseudo_labels.teacher=zero_shot_teacher",)),
                Row("teacher adapted without pseudo-labels", student=("pseudo_labels.teacher=supervised_teacher",)),
                Row("no refinement", DISTILLED),
                Row("all"),
            ),
        ),
        Table(
            "refinement", "Does refining on the labels help, after pseudo-labels to the end and after those that fade?",
            "not refined",
            (
                Row("not refined", DISTILLED),
                Row("refined"),
                Row("faded", DISTILLED, student=FADED),
                Row("faded and refined", student=FADED, against="faded"),
            ),
        ),
        Table(
            "negatives", "Which negatives should L_pxl draw, and what do they cost?", "no L_pxl",
            (
                _distilled("no L_pxl", *PIXEL_OFF),
                _distilled("as written", *PIXEL_ON, *AS_WRITTEN),
                *(_distilled(cues, *PIXEL_ON, "contrast.form=sampled", f"contrast.cues={cues}")
                  for cues in ("uniform", "mask", "class", "fused", "object")),
                _distilled("object in one image of four", *PIXEL_ON, "contrast.form=sampled", "contrast.cues=object",
                           "contrast.strong_every=4"),
                _distilled("expected", *PIXEL_ON, "contrast.form=expected", "contrast.cues=object"),
                _distilled("half hard", *PIXEL_ON, "contrast.form=sampled", "contrast.cues=object",
                           "contrast.hard_share=0.5"),
                _distilled("boundary", *PIXEL_ON, "contrast.form=boundary", "contrast.cues=object",
                           "contrast.scope=same"),
                _distilled("prototypes", *PIXEL_ON, "contrast.form=prototypes"),
                _distilled("ownership", *PIXEL_ON, "contrast.form=ownership"),
            ),
            ("margin", "fnr_foreground", "fnr_background", "step_cost"), "no L_pxl",
        ),
        Table(
            "doubt", "How should a student be taught what its teacher is unsure of?", "as by default",
            (
                _distilled("as by default"),
                *(_distilled(f"unsure from precision {precision}", f"pseudo_labels.unsure_precision={precision}")
                  for precision in (0.0, 0.2, 0.1)),
                _distilled("no object by score", "loss.no_object_by_score=true"),
                _distilled("thresholds by class alone", "pseudo_labels.shrink=0"),
                _distilled("unweighted", "pseudo_labels.weigh_by_score=false"),
            ),
        ),
        Table("steps", "How long should a student be distilled?", "1 x steps", _steps(), ("steps", "cpu_seconds")),
        Table("labels", "How does the gain depend on the number of labels?", "", _labels(), ("chain_steps",)),
        Table(
            "baselines", "Is it better than other ways to use unlabelled images, in as many steps?", "ours",
            BASELINES, ("total_seconds",),
        ),
        Table(
            "baselines-time", "Is it better than other ways to use unlabelled images, in as much time?", "ours",
            _as_long(), ("chain_steps", "total_seconds"),
        ),
        Table(
            "map", "How fine should the map of L_pxl be?", "no L_pxl",
            (
                _distilled("no L_pxl", *PIXEL_OFF),
                *(_distilled(f"level {level}", *PIXEL_ON, f"student.embedding_level={level}")
                  for level in (3, 2, 1, 0)),
            ),
            ("map_stride", "margin", "step_cost"), "no L_pxl",
        ),
        Table(
            "cost", "What does each model cost?", "refined student",
            tuple(
                Row(name.replace("_", " "), name, (*CHAIN, BASELINE, MATCHED_BASELINE))
                for name in (*(t for t in TEACHERS if t != FITTED), BASELINE, MATCHED_BASELINE, *CHAIN)
            ),
            ("params", "gflops", "steps", "step_seconds", "seconds", "label_seconds", "cpu_seconds", "total_seconds"),
        ),
    )
}  # fmt: skip
