"""Settings and output of L_pxl, shared by all of its forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sskd_fast.reference.score_fusion import Cues

ContrastCues = Literal[Cues, "uniform"]
Scope = Literal["all", "other", "same"]
Form = Literal["sampled", "expected", "boundary", "prototypes", "ownership"]
# The kinds of models that a form needs: with mask features, or with queries that are matched to instances.
FORM_KINDS: dict[str, tuple[str, ...]] = {
    "prototypes": ("mask_transformer",),
    "ownership": ("mask_transformer", "universal"),
}


@dataclass(frozen=True)
class ContrastOutput:
    """The loss, with gradient, and diagnostics to watch while training (0-dimensional tensors without gradient).

    diagnostics: "margin" is the mean positive minus the mean negative similarity. "fnr", "fnr_foreground" and
    "fnr_background" are shares of the negatives on the instance of their anchor (background counts as one
    instance across all images). "other_instance_share" is the share of a foreground anchor's negatives on another
    instance. NaN if unknown.
    Forms that draw no negatives have no diagnostics.
    """

    loss: Tensor
    diagnostics: dict[str, Tensor]


@dataclass(frozen=True)
class ContrastConfig:
    """Settings of the contrastive loss.

    form: "sampled", drawn negatives, or "expected", their expectation (the method's).  This project's own are
    "boundary" (anchors beside another instance, see `BoundaryContrast`) and "prototypes" (of the mask features, see
    `MaskPrototypes`).  So is "ownership" (queries that compete for a pixel, see `MaskOwnership`).  num_negatives: R.
    temperature: (at progress 0, at progress 1), linear in between.  cues: predictions that tell instances apart, see
    `ops.fuse_scores`; "uniform" ignores the predictions.  scope: candidates of all images, of other images, or of the
    anchor's own image.
    margin: similarity below which negatives do not push.  hard_share: share of the negatives that are the most similar
    ones of a larger draw.  max_anchors: anchors per image, drawn without replacement; 0 for every pixel.  objectness:
    prefer candidates on objects.  memory_bank: number of pixels of earlier steps kept as further candidates.
    all_ranks: candidates are the pixels of all ranks, not only this one's; those of other ranks have no gradient.
    strong_every: of every so many images of the joint batch, one has a strong view and anchors, in turns; the pixels of
    all are candidates.  1 for every image, as in the method; the strong views are most of the loss's cost.
    backend: of the operators.

    reach: for form "boundary", largest distance in cells from an anchor to another instance.  spread: rho of form
    "boundary"; negatives are drawn with exp(-distance^2 / 2 rho^2), in cells.  The temperature of "prototypes" is the
    first of `temperature`.
    Raises ValueError naming a setting out of range or a meaningless combination.
    """

    num_negatives: int = 64
    temperature: tuple[float, float] = (0.3, 0.07)
    cues: ContrastCues = "object"
    scope: Scope = "all"
    form: Form = "sampled"
    margin: float | None = None
    hard_share: float = 0.0
    max_anchors: int = 24
    objectness: bool = False
    memory_bank: int = 0
    all_ranks: bool = False
    strong_every: int = 1
    backend: str = "auto"
    reach: int = 2
    spread: float = 8.0

    def __post_init__(self) -> None:
        for name, choices in (("cues", ContrastCues), ("scope", Scope), ("form", Form)):
            value, known = getattr(self, name), get_args(choices)
            require(value in known, f"{name}={value!r} is unknown; expected one of {', '.join(known)}")
        require(self.num_negatives >= 1, f"num_negatives: expected at least 1, found {self.num_negatives}")
        require(
            len(self.temperature) == 2 and min(self.temperature) > 0,
            f"temperature: expected two > 0, found {self.temperature}",
        )
        require(0 <= self.hard_share <= 1, f"hard_share: expected a share in [0, 1], found {self.hard_share}")
        require(self.max_anchors >= 0, f"max_anchors: expected a number, 0 for every pixel, found {self.max_anchors}")
        require(self.memory_bank >= 0, f"memory_bank: expected a number of pixels, found {self.memory_bank}")
        require(self.strong_every >= 1, f"strong_every: expected at least 1 image, found {self.strong_every}")
        require(self.reach >= 1, f"reach: expected at least 1 cell, found {self.reach}")
        require(self.spread > 0, f"spread: expected cells > 0, found {self.spread}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        require(
            not self.memory_bank or self.scope != "same",
            "memory_bank: pixels of earlier steps are never in scope 'same'",
        )
        require(not self.all_ranks or self.scope != "same", "all_ranks: no image of another rank is in scope 'same'")
        form = f"form={self.form!r}"
        if self.form in ("expected", "boundary"):
            require(self.cues != "uniform", f"{form} needs cues that tell the pixels apart, found cues='uniform'")
        if self.form != "sampled":
            require(self.margin is None, f"{form} has no margin")
            require(self.hard_share == 0, f"{form} has no draws of which to take the hardest (hard_share)")
        if self.form not in ("sampled", "expected"):
            require(not self.memory_bank, f"{form} takes no pixels of earlier steps (memory_bank)")
            require(not self.all_ranks, f"{form} takes no pixels of other ranks (all_ranks)")
            require(not self.objectness, f"{form} has no choice of objectness: leave it out")
        if self.form in ("prototypes", "ownership"):
            require(self.strong_every == 1, f"{form} has no strong views of which to leave some out (strong_every)")
        if self.form == "boundary":
            require(
                self.scope == "same",
                f"{form} draws negatives near the anchor, in its own image: set scope='same', found {self.scope!r}",
            )

    def temperature_at(self, progress: float) -> float:
        """The temperature at `progress` of the training, in [0, 1]. Raises ValueError outside."""
        require(0 <= progress <= 1, f"progress: expected a number in [0, 1], found {progress}")
        start, end = self.temperature
        return start + (end - start) * progress


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
