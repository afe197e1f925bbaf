"""Length and learning rate of a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """Settings shared by all stages.

    lr: of AdamW, multiplied by the stage's `lr_factor`; backbone_lr: factor of the backbone's lr.  semi_fade: final
    share of a stage over which lam_semi falls to 0.  semi_masks: weight of the pseudo-labels' masks relative to their
    classes.  lam_pxl: weight of L_pxl, 0 to leave it out.  pxl_gradient_share: if above 0, L_pxl is weighted so that
    its gradient is this share of the rest's, and lam_pxl > 0 only switches L_pxl on.  schedule: "cosine" or "poly"
    (power 0.9), after `warmup` steps.  max_steps: limit of steps for every stage (0 = none).  evaluations: number of
    times that a fold model measures AP on its fold while it trains.  threads: 0 = all cores.  micro_batch: images that
    a process sees at once, with gradients accumulated over the step.  0 = all, or as many as fit into a GPU's memory
    (without FSDP).
    compile: backend of torch.compile for this package's own models, such as "inductor" or "cudagraphs"; "" = none.
    """

    lr: float = 4e-3
    backbone_lr: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    warmup: int = 40
    schedule: Literal["cosine", "poly"] = "cosine"
    ema: float = 0.99
    lam_semi: float = 1.0
    semi_fade: float = 0.0
    semi_masks: float = 1.0
    lam_pxl: float = 0.0
    pxl_gradient_share: float = 0.0
    max_steps: int = 0
    log_every: int = 10
    save_every: int = 200
    evaluations: int = 3
    threads: int = 0
    micro_batch: int = 0
    compile: str = ""

    def __post_init__(self) -> None:
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch: expected images, 0 for as many as fit, found {self.micro_batch}")
        if not self.pxl_gradient_share >= 0:
            found = self.pxl_gradient_share
            raise ValueError(f"pxl_gradient_share: expected a share of the rest's gradient, 0 for none, found {found}")
        if self.pxl_gradient_share and not self.lam_pxl:
            raise ValueError(
                f"pxl_gradient_share={self.pxl_gradient_share}: L_pxl is left out at lam_pxl=0; set lam_pxl=0.1 as well"
            )


@dataclass(frozen=True)
class StageConfig:
    """The budget of one stage: steps, labelled and unlabelled images per step, factors of lr and lam_semi."""

    steps: int = 100
    labeled_batch: int = 8
    unlabeled_batch: int = 0
    lr_factor: float = 1.0
    semi_factor: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """The schedule of a stage: the shared settings and the stage's own budget."""

    train: TrainConfig
    budget: StageConfig

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.budget.steps

    @property
    def lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.train.lr * self.budget.lr_factor

    def factor(self, step: int) -> float:
        """Learning-rate factor of a step: linear warm-up, then cosine down to 2 % or polynomial with power 0.9."""
        rise = min(1.0, (step + 1) / max(1, min(self.train.warmup, self.steps // 4)))
        done = step / max(1, self.steps)
        cosine = self.train.schedule == "cosine"
        fall = 0.02 + 0.49 * (1 + math.cos(math.pi * done)) if cosine else (1 - done) ** 0.9
        return rise * fall
