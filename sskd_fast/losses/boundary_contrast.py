"""L_pxl at the boundaries of instances: anchors beside another instance, positives on the instance, near negatives.

Ours, not the paper's: there, all pixels are anchors, and the positive is the same pixel in the other view.
Shape letters: B images, N cells per image, A anchors, D embedding width, R negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast import rng
from sskd_fast.losses.anchors import Pixels, draw_anchors, pixel_rows, rows_of
from sskd_fast.losses.contrast import DIAGNOSTICS, check_shapes, diagnose
from sskd_fast.losses.contrast_settings import ContrastConfig, ContrastOutput
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.training_step import TrainingStep


class BoundaryContrast(nn.Module):
    """L = -mean over anchors a of log[P / (P + sum_r exp(s(a, q_r)))].

    P is the mean of exp(s+(a, p)) over the cells p of a's instance in the strong view.
    s and s+ are cosine similarities over the temperature, in the weak view and between the views.  Anchors lie within
    `reach` cells of another instance.  R negatives q of the same image are drawn without replacement with weights
    s_deb(a, q) (0.03 + 0.97 objectness(q)) exp(-|a - q|^2 / 2 spread^2), distances in cells.  The mean is weighted.
    A plain PyTorch pass over anchors x cells, for maps of a few thousand cells.
    """

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config

    def of_step(self, step: TrainingStep) -> ContrastOutput:
        """The loss of a training step, with its labels and pseudo-labels as instances."""
        weak, strong, has_strong = step.embeddings(self.config.strong_every)
        size = (weak.shape[-2], weak.shape[-1])
        instances, weights = step.instances(size)
        return self(
            step.predictions.mask_logits, step.predictions.class_logits, weak, strong, instances, weights,
            valid=step.valid(size), progress=step.progress, seed=step.seed, numbers=step.numbers,
            joint=step.joint, has_strong=has_strong,
        )  # fmt: skip

    def forward(
        self, mask_logits: Tensor, class_logits: Tensor, embeddings_weak: Tensor, embeddings_strong: Tensor,
        instance_ids: Tensor, weights: Tensor, *, valid: Tensor, progress: float, seed: int,
        numbers: Sequence[int] | None = None, joint: JointBatch = WHOLE, has_strong: Tensor | None = None,
    ) -> ContrastOutput:  # fmt: skip
        """The loss of a batch of image pairs, two views of one geometry; 0 without anchors.

        mask_logits (B, K, H, W) and class_logits (B, K, C+1) of the weak view, without gradient.  embeddings_weak (B,
        D, h, w), with gradient.  embeddings_strong (B, D, h, w), without.  instance_ids (B, h, w) int64: 0 background.
        weights (B, h, w) float: of the anchors, 0 to exclude one.  valid (B, h, w) bool: False for excluded cells.
        joint: the joint batch; the loss is divided by the summed weight of its anchors.  numbers: of the images in it.
        has_strong (B,) bool: images with a strong view, which alone have anchors; all by default.
        Raises ValueError or TypeError naming an argument of the wrong shape or range.
        """
        config, temperature = self.config, self.config.temperature_at(progress)
        shape = check_shapes(mask_logits, embeddings_weak, embeddings_strong, valid, instance_ids)
        cells = pixel_rows(
            mask_logits, class_logits, embeddings_weak, instance_ids, cues=config.cues, weighted=True,
            backend=config.backend,
        )  # fmt: skip
        beside = near_another(instance_ids.where(valid, 0), config.reach) & valid & (weights > 0)
        beside = beside if has_strong is None else beside & has_strong[:, None, None]
        index = draw_anchors(shape, beside, config.max_anchors, seed, weights.device, numbers)
        weight = weights.flatten()[index]
        total = joint.total("anchors", weight.sum())
        if not len(index):
            nothing = embeddings_weak.sum() * 0
            return ContrastOutput(nothing, dict.fromkeys(DIAGNOSTICS, weights.new_tensor(math.nan)))
        anchors, usable = cells.select(index), valid.flatten(1)
        strong = F.normalize(rows_of(embeddings_strong.detach()), dim=-1).view(*shape, -1)
        own = (cells.label.view(shape)[anchors.image] == anchors.label[:, None]) & usable[anchors.image]
        negatives = draw_near(cells, index, usable, instance_ids.shape[-1], config, seed, numbers)
        loss = anchor_losses(anchors, own, negatives, cells.embedding.view(*shape, -1), strong, temperature)
        with torch.no_grad():
            mean = own.to(strong.dtype)[:, None] @ strong[anchors.image] / own.sum(1)[:, None, None]
            at = torch.where(negatives >= 0, negatives + anchors.image[:, None] * shape[1], -1)
            diagnostics = diagnose(anchors, mean.squeeze(1), cells, at)
        return ContrastOutput((loss * weight).sum() / total, diagnostics)


def anchor_losses(
    anchors: Pixels, own: Tensor, negatives: Tensor, weak: Tensor, strong: Tensor, temperature: float
) -> Tensor:
    """The loss of each anchor, (A,).

    own (A, N) bool: cells of its instance. negatives (A, R) int64: cells of its image, -1 for none. weak, strong (B, N,
    D): unit embeddings of all cells.
    """
    attraction = _by_image(_products, anchors.embedding, anchors.image, strong) / temperature
    repulsion = _by_image(_products, anchors.embedding, anchors.image, weak) / temperature
    positive = attraction.masked_fill(~own, -math.inf).logsumexp(1) - own.sum(1).to(attraction.dtype).log()
    drawn = repulsion.gather(1, negatives.clamp_min(0)).masked_fill(negatives < 0, -math.inf)
    return torch.cat([positive[:, None], drawn], 1).logsumexp(1) - positive


def near_another(instance_ids: Tensor, reach: int) -> Tensor:
    """Mask (B, h, w) bool of cells of an instance with a cell of another at most `reach` rows and columns away.

    instance_ids (B, h, w) int64: 0 background, -1 unknown; neither is an instance.
    """
    ids = instance_ids.double().unsqueeze(1)
    inside, none = ids > 0, ids.max() + 1

    def highest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2 * reach + 1, stride=1, padding=reach)

    lowest = -highest(-torch.where(inside, ids, none))
    return (inside & ((highest(ids) != ids) | (lowest != ids))).squeeze(1)


@torch.no_grad()
def draw_near(
    cells: Pixels, index: Tensor, usable: Tensor, width: int, config: ContrastConfig, seed: int,
    numbers: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Draw R cells of each anchor's image: (A, R) int64 in the order drawn, -1 if fewer have a positive weight.

    cells: with scores and weights, image by image; index (A,): the anchors among them, image by image.  usable (B, N)
    bool.  width: cells per row.  numbers: of the images, which seed their draws; 0, 1, ... by default.  The law is
    successive sampling, by an exponential race (see `reference.negative_sampling`).
    """
    images, count = usable.shape
    assert cells.scores is not None and cells.weight is not None
    image, place = cells.image[index], index % count
    scores = cells.scores.double()
    weight = _by_image(_half_squared_distances, scores[index], image, scores.view(images, count, -1))
    every = torch.arange(count, device=index.device)
    rows, columns = (place // width)[:, None] - every // width, (place % width)[:, None] - every % width
    weight *= torch.exp((rows.square() + columns.square()) / (-2 * config.spread**2))
    weight *= cells.weight.double().view(images, count)[image] * usable[image]
    drawer = index if numbers is None else torch.tensor(numbers, device=index.device)[image] * count + place
    words = rng.random_words(rng.seed_key(seed, index.device), drawer[:, None], every, rng.STREAM_RACE)[0]
    arrival = rng.unit_interval(words).log_().neg_().div_(weight)
    first, drawn = arrival.topk(min(config.num_negatives, count), largest=False, sorted=True)
    return drawn.masked_fill(first.isinf(), -1)


def _by_image(pairs: Callable[[Tensor, Tensor], Tensor], rows: Tensor, image: Tensor, cells: Tensor) -> Tensor:
    """Apply `pairs` to the rows (A, D) and the cells (B, N, D) of their image, image by image: (A, N)."""
    counts = torch.bincount(image, minlength=len(cells)).tolist()
    return torch.cat([pairs(some, all_) for some, all_ in zip(rows.split(counts), cells, strict=True)])


def _products(rows: Tensor, cells: Tensor) -> Tensor:
    return rows @ cells.T


def _half_squared_distances(rows: Tensor, cells: Tensor) -> Tensor:
    # Not by matrix product, which loses the digits of nearly equal rows.
    return torch.cdist(rows, cells, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(0.5)
