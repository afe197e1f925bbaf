"""The set loss: Hungarian matching, then class cross-entropy, mask cross-entropy and dice after every decoder layer.

Source: the loss of Mask2Former.  Shape letters: B images, K queries, C classes, G padded instances,
P mask pixels or sampled points, h x w cells of the mask map.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast import rng
from sskd_fast.data.instances import Instances
from sskd_fast.losses.box_loss import box_losses, boxes_of
from sskd_fast.losses.dense_loss import DenseLossConfig, dense_loss
from sskd_fast.losses.heat_loss import heat_loss, heat_terms
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.matching import MatchCosts, Targets, lies_inside, match, pad_targets, pair_costs
from sskd_fast.losses.pooling import pooled, pooled_size
from sskd_fast.models.dense_maps import DenseMaps
from sskd_fast.models.segmenter import Predictions


@dataclass(frozen=True)
class SetLossConfig:
    """Weights and sampling of the set loss.

    masks: "dense" uses every cell of the mask map, "points" samples `points` places.  They are oversampled `oversample`
    times; a share `importance` of them has the least sure predictions.  normalizer: "pixels" averages a mask's
    cross-entropy over all places, as in Mask2Former.  "area" sums it and divides by 4 * area + 20 cells, for small
    objects in large crops.  no_object_by_score: queries without an object get the mean weight of the image's instances,
    so that a teacher's doubt about its detections also holds for background.  box_weight, overlap_weight: of L1 and
    generalised IoU, for models that predict boxes (DETR).  trained_boxes: for a promptable model, number of instances
    per image, drawn at every step, that masks are learned from, 0 = all.  The model's own losses use every instance.
    dense: for models with dense queries, which ignore the other settings.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    heat_weight: float = 1.0
    box_weight: float = 5.0
    overlap_weight: float = 2.0
    masks: Literal["dense", "points"] = "dense"
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    normalizer: Literal["area", "pixels"] = "area"
    no_object_by_score: bool = False
    trained_boxes: int = 32
    dense: DenseLossConfig = field(default_factory=DenseLossConfig)


@dataclass
class SetLossOutput:
    """The value of the set loss.

    loss: weighted sum of the parts.  parts: unweighted, over all layers.  matched: share of instances with a query.
    seconds: spent in the matching.  assigned (B, G): the query of each instance after the last layer, -1 for none; None
    for a promptable model.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    matched: Tensor
    seconds: float
    assigned: Tensor | None = None


class SetLoss:
    """L(predictions, instances): call it with predictions, one record per image, and the (B, H, W) valid mask.

    label_pool: masks are compared on a map this many times coarser than the predicted one, as mean probabilities of its
    cells. Labels of a coarser teacher lack finer detail, and the student must not learn their blur.  semi_masks: factor
    of the mask and box terms, for labels whose classes and places are more reliable than their outlines.  joint: the
    joint batch, over which terms are means.  Class terms divide by the summed weight of queries, masks and boxes by
    that of instances, and the heat by the number of instances.  seed: of the draw of `trained_boxes`.  first: number
    in the joint batch of the first image, on which the draw depends, too.
    """

    def __init__(self, config: SetLossConfig) -> None:
        self.config = config
        self.pair_costs, self.mask_terms, self.heat_terms = pair_costs, mask_terms, heat_terms

    def compile(self, backend: str) -> None:
        """Has torch.compile make a graph each of what is computed for every place of a mask; matching is no part."""
        compiled = partial(torch.compile, fullgraph=True, dynamic=True, backend=backend)
        self.pair_costs, self.mask_terms, self.heat_terms = map(compiled, (pair_costs, mask_terms, heat_terms))

    def __call__(
        self,
        predictions: Predictions,
        instances: list[Instances],
        valid: Tensor,
        *,
        label_pool: int = 1,
        semi_masks: float = 1.0,
        joint: JointBatch = WHOLE,
        seed: int = 0,
        first: int = 0,
    ) -> SetLossOutput:
        if predictions.promptable:
            drawn = drawn_instances(instances, self.config.trained_boxes, seed, first)
            return self._answered(predictions, instances, drawn, valid, label_pool, semi_masks, joint)
        if predictions.dense is not None:
            return self._dense(predictions.dense, instances, valid, label_pool, semi_masks, joint)
        config = self.config
        targets = pad_targets(instances, valid, pooled_size(predictions.mask_logits, label_pool))
        layers = [*predictions.auxiliary, (predictions.mask_logits, predictions.class_logits)]
        parts = {name: predictions.mask_logits.new_zeros(()) for name in ("class", "mask", "dice")}
        seconds, matched, choices = 0.0, parts["class"], []
        for number, (masks, classes) in enumerate(layers):
            output = self._layer(pooled(masks, label_pool), classes, targets, joint.within(f"layer {number} "))
            for name in parts:
                parts[name] = parts[name] + output.parts[name]
            seconds, matched = seconds + output.seconds, output.matched
            choices.append(output.assigned)
        loss = (
            config.class_weight * parts["class"]
            + semi_masks * config.mask_weight * parts["mask"]
            + semi_masks * config.dice_weight * parts["dice"]
        )
        if predictions.boxes:
            around = [boxes_of(i) for i in instances]
            parts |= box_losses(predictions.boxes, choices, around, targets.weights, joint)
            loss = loss + semi_masks * (config.box_weight * parts["box"] + config.overlap_weight * parts["overlap"])
        if predictions.heat is not None:
            finest = pad_targets(instances, valid, pooled_size(predictions.heat, 1)) if label_pool > 1 else targets
            parts["heat"] = heat_loss(predictions.heat, finest, joint, self.heat_terms)
            loss = loss + config.heat_weight * parts["heat"]
        return SetLossOutput(loss, parts, matched, seconds, choices[-1])

    def _dense(
        self, maps: DenseMaps, instances: list[Instances], valid: Tensor, label_pool: int, semi_masks: float,
        joint: JointBatch,
    ) -> SetLossOutput:  # fmt: skip
        """The loss of dense queries, which are not matched one-to-one."""
        config = self.config.dense
        parts, matched = dense_loss(config, maps, instances, valid, joint, label_pool)
        masks = config.mask_weight * parts["mask"] + config.dice_weight * parts["dice"]
        return SetLossOutput(config.class_weight * parts["class"] + semi_masks * masks, parts, matched, 0.0)

    def _answered(
        self, predictions: Predictions, instances: list[Instances], drawn: list[Tensor], valid: Tensor,
        label_pool: int, semi_masks: float, joint: JointBatch,
    ) -> SetLossOutput:  # fmt: skip
        """The loss of a promptable model: the masks of the drawn instances, and the model's own terms."""
        config, device = self.config, valid.device
        boxes, labels = [boxes_of(i).to(device) for i in instances], [i.labels.to(device) for i in instances]
        weights, masked = [i.scores.to(device) for i in instances], [index.to(device) for index in drawn]
        answers = predictions.answer(boxes, labels, weights, valid, masked, joint.total)
        masks = pooled(answers.mask_logits, label_pool)
        learned = [i.select(index) for i, index in zip(instances, drawn, strict=True)]
        targets = pad_targets(learned, valid, pooled_size(answers.mask_logits, label_pool))
        count = targets.present.shape[1]
        found = targets.present if answers.found is None else answers.found
        assigned = torch.where(found, torch.arange(count, device=device), -1)
        logits, pixels, seen = self._places(masks, targets)
        parts = self._mask_parts(logits, pixels, seen, self._normalizer(masks, pixels, seen), assigned, targets, joint)
        loss = semi_masks * (config.mask_weight * parts["mask"] + config.dice_weight * parts["dice"])
        for term in answers.terms.values():
            loss = loss + term
        matched = (assigned >= 0).sum() / targets.present.sum().clamp(min=1)
        return SetLossOutput(loss, parts | answers.terms, matched, 0.0)

    def _layer(self, mask_logits: Tensor, class_logits: Tensor, targets: Targets, joint: JointBatch) -> SetLossOutput:
        config = self.config
        logits, pixels, valid = self._places(mask_logits, targets)
        normalizer = self._normalizer(mask_logits, pixels, valid)
        start = time.perf_counter()
        costs = MatchCosts(config.class_weight, config.mask_weight, config.dice_weight)
        matching = match(logits, class_logits, targets, pixels * valid, valid, normalizer, costs, self.pair_costs)
        seconds, assigned = time.perf_counter() - start, matching.assigned
        inside = matching.inside if config.masks == "dense" else inside_everywhere(mask_logits, targets.valid)
        classes = self._class_loss(class_logits, targets, assigned, inside, joint)
        parts = {"class": classes} | self._mask_parts(logits, pixels, valid, normalizer, assigned, targets, joint)
        matched = (assigned >= 0).sum() / targets.present.sum().clamp(min=1)
        return SetLossOutput(classes, parts, matched, seconds, assigned)

    def _normalizer(self, mask_logits: Tensor, pixels: Tensor, valid: Tensor) -> Tensor:
        """Divisors (B, G) of the cross-entropy of an instance's mask, summed over the places."""
        area = (pixels * valid).sum(-1)
        if self.config.normalizer == "pixels":
            return valid.sum(-1).clamp(min=1.0).expand_as(area)
        return 4 * area + 20 * pixels.shape[-1] / mask_logits[0, 0].numel()

    def _mask_parts(
        self, logits: Tensor, pixels: Tensor, valid: Tensor, normalizer: Tensor, assigned: Tensor, targets: Targets,
        joint: JointBatch,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Cross-entropy and dice of the masks; assigned (B, G): the query of each instance, -1 for none."""
        image, instance = torch.nonzero(assigned >= 0, as_tuple=True)
        x, t, v = logits[image, assigned[image, instance]], pixels[image, instance], valid[image, 0]
        weight = targets.weights[image, instance]
        total = joint.total("instances", targets.weights.sum()).clamp(min=1.0)
        entropy, dice = self.mask_terms(x, t, v, normalizer[image, instance], weight)
        return {"mask": entropy / total, "dice": dice / total}

    def _class_loss(
        self, class_logits: Tensor, targets: Targets, assigned: Tensor, inside: Tensor, joint: JointBatch
    ) -> Tensor:
        """Weighted cross-entropy; unmatched queries mostly on invalid pixels (padding, crowd, unsure) do not count."""
        image, instance = torch.nonzero(assigned >= 0, as_tuple=True)
        query = assigned[image, instance]
        no_object = class_logits.shape[-1] - 1
        labels = torch.full(class_logits.shape[:2], no_object, dtype=torch.int64, device=class_logits.device)
        labels[image, query] = targets.labels[image, instance]
        weight = self.config.no_object_weight * inside.to(class_logits.dtype)
        if self.config.no_object_by_score:
            weight = weight * mean_weight(targets)
        weight[image, query] = targets.weights[image, instance]
        loss = F.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (loss * weight.flatten()).sum() / joint.total("queries", weight.sum()).clamp(min=1.0)

    def _places(self, mask_logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Masks at the places of comparison: logits (B, K, P), instances (B, G, P) and valid weights (B, 1, P)."""
        if self.config.masks == "dense":
            return mask_logits.flatten(2), targets.masks.flatten(2), targets.valid.flatten(1).unsqueeze(1)
        grid = sample_points(mask_logits, self.config.points, self.config.oversample, self.config.importance)

        def at_points(x: Tensor) -> Tensor:
            return F.grid_sample(x, grid, mode="bilinear", align_corners=False).squeeze(2)

        return at_points(mask_logits), at_points(targets.masks), at_points(targets.valid.unsqueeze(1))


def mask_terms(
    logits: Tensor, pixels: Tensor, valid: Tensor, normalizer: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over n pairs of cross-entropy and dice, times weight (n,): logits, pixels, valid (n, P), normalizer (n,)."""
    entropy = (F.binary_cross_entropy_with_logits(logits, pixels, reduction="none") * valid).sum(-1) / normalizer
    prob = logits.sigmoid() * valid
    dice = 1 - (2 * (prob * pixels).sum(-1) + 1) / (prob.sum(-1) + (pixels * valid).sum(-1) + 1)
    return (entropy * weight).sum(), (dice * weight).sum()


def mean_weight(targets: Targets) -> Tensor:
    """The mean weight (B, 1) of an image's instances, 1 without any."""
    count = targets.present.sum(1, keepdim=True)
    total = (targets.weights * targets.present).sum(1, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1), 1.0)


@torch.no_grad()
def inside_everywhere(mask_logits: Tensor, valid: Tensor) -> Tensor:
    """Mask (B, K) bool: True if most of a query's mask lies on valid cells.

    Uses the whole map, since sampled points lie where masks are least sure.  mask_logits (B, K, h, w), valid (B, h, w).
    """
    prob = mask_logits.sigmoid().flatten(2)
    return lies_inside((prob @ valid.flatten(1).unsqueeze(2)).squeeze(2), prob.sum(-1), prob.shape[-1])


def drawn_instances(instances: list[Instances], count: int, seed: int, first: int = 0) -> list[Tensor]:
    """Ascending indices of at most `count` instances per image, drawn without replacement; 0 takes all.

    An image's draw depends on the seed and the image's number in the joint batch, which is `first` for the first one.
    """
    key, drawn = rng.seed_key(seed, torch.device("cpu")), []
    for number, record in enumerate(instances, first):
        index = torch.arange(len(record))
        order = rng.random_words(key, torch.full_like(index, number), index, rng.STREAM_BOXES)[0].argsort()
        drawn.append((order[:count] if count else order).sort().values)
    return drawn


@torch.no_grad()
def sample_points(mask_logits: Tensor, count: int, oversample: float, importance: float) -> Tensor:
    """Places for point-sampled masks, shared by all queries of an image: (B, 1, count, 2) in [-1, 1] for grid_sample.

    A share `importance` is chosen from `oversample * count` uniform places, where some query is least sure.
    """
    b = mask_logits.shape[0]
    drawn = torch.rand((b, 1, int(count * oversample), 2), device=mask_logits.device, dtype=mask_logits.dtype) * 2 - 1
    unsure = F.grid_sample(-mask_logits.abs(), drawn, align_corners=False).amax(1).squeeze(1)
    chosen = unsure.topk(int(count * importance), dim=1).indices
    hard = drawn.squeeze(1).gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))
    rest = torch.rand((b, count - hard.shape[1], 2), device=drawn.device, dtype=drawn.dtype) * 2 - 1
    return torch.cat([hard, rest], dim=1).unsqueeze(1)
