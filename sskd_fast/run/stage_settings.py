"""What the settings make of a stage: its budget, its objective, and the weights of the parts of its loss."""

from __future__ import annotations

import dataclasses

from sskd_fast import ranks
from sskd_fast.losses.objective import Objective
from sskd_fast.method import Stage
from sskd_fast.settings import Config
from sskd_fast.train.schedule import StageConfig
from sskd_fast.typed_settings import ConfigError


def stage_budget(config: Config, stage: Stage) -> StageConfig:
    """The stage's budget: that of its first entry, with the steps of all entries added up.

    A stage without unlabelled images draws labelled ones in their place, so that budgets compare image by image.
    """
    parts: list[StageConfig] = [getattr(config.stages, name) for name in stage.budget]
    limit = config.train.max_steps
    steps = sum(min(part.steps, limit) if limit else part.steps for part in parts)
    first = parts[0]
    if stage.labels_from is None:
        first = dataclasses.replace(first, labeled_batch=first.labeled_batch + first.unlabeled_batch, unlabeled_batch=0)
    return dataclasses.replace(first, steps=steps)


def check_shares(config: Config, stage: Stage) -> None:
    """Raises ConfigError if the images of a step cannot be split evenly among the ranks."""
    budget = stage_budget(config, stage) if stage.budget else StageConfig(labeled_batch=0)
    for name in ("labeled_batch", "unlabeled_batch"):
        images, count = getattr(budget, name), ranks.count()
        if images % count:
            raise ConfigError(
                f"stages.{stage.budget[0]}.{name}: found {images} images per step for {count} processes; expected a "
                f"multiple of {count}, such as {count * max(1, round(images / count))}"
            )


def stage_objective(config: Config, stage: Stage, label_pool: int = 1) -> Objective:
    """J with the stage's weights; label_pool: stride of the pseudo-labels divided by that of the model's masks."""
    lam_pxl = config.train.lam_pxl * stage.pixel
    return Objective.of(
        config.loss, config.contrast, lam_semi=semi_weight(config, stage), lam_pxl=lam_pxl, label_pool=label_pool,
        semi_fade=config.train.semi_fade, semi_masks=config.train.semi_masks,
        pxl_gradient_share=config.train.pxl_gradient_share,
    )  # fmt: skip


def semi_weight(config: Config, stage: Stage) -> float:
    """lam_semi of a stage, the weight of its pseudo-labels; 0 if it has none."""
    return config.train.lam_semi * stage_budget(config, stage).semi_factor if stage.semi else 0.0


def part_weights(config: Config, stage: Stage) -> dict[str, float]:
    """Weights of the logged loss parts for comparison: a part's weight in J.

    For L_pxl it leaves out lam_pxl, which makes L_pxl small by design.
    """
    loss, t = config.loss, config.train
    if getattr(config, stage.model).kind == "dense":
        loss = dataclasses.replace(
            loss,
            class_weight=loss.dense.class_weight,
            mask_weight=loss.dense.mask_weight,
            dice_weight=loss.dense.dice_weight,
        )
    weights = {
        "class": loss.class_weight, "mask": loss.mask_weight, "dice": loss.dice_weight, "heat": loss.heat_weight,
        "detector": 1.0, "presence": 1.0, "query": 1.0, "box": 1.0,
    }  # fmt: skip
    parts = {f"sup_{n}": w for n, w in weights.items()} | ({"pxl": 1.0} if stage.pixel else {})
    semi = weights | {n: w * t.semi_masks for n, w in weights.items() if n in ("mask", "dice")}
    return parts | ({f"semi_{n}": w * semi_weight(config, stage) for n, w in semi.items()} if stage.semi else {})
