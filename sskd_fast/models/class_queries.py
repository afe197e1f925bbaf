"""Queries that ask for one class each: their scores, their matching within the class, and their losses.

Source: SAM 3, whose score is the presence of the class on the image times the query's own probability.
Shape letters: B images, C classes, K queries per class, N queries kept, G padded instances, n instances of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.models.segmenter import JointTotal, own_total

# Log-probability of the classes that a query does not ask for.
_NEVER = -80.0
# DETR's weights, both in the matching and in the loss.
_CLASS, _L1, _OVERLAP = 2.0, 5.0, 2.0
_PRESENCE = 2.0


@dataclass
class ClassQueries:
    """Queries for every class.

    presence (B, C): logits that the class is on the image.  logits (B, C, K): that a query shows an instance of its
    class, given presence.  boxes (B, C, K, 4): x0 y0 x1 y1 as shares of the image.
    """

    logits: Tensor
    presence: Tensor
    boxes: Tensor

    def part(self, rows: slice) -> ClassQueries:
        """The queries of some images of the batch."""
        return ClassQueries(self.logits[rows], self.presence[rows], self.boxes[rows])

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best-scored queries of each image.

        Returns their index (B, N) in C*K and class log-probabilities (B, N, C+1), no-object last.  A query's own class
        has probability presence x query probability, no-object the rest, and every other class 0.
        """
        presence = self.presence.unsqueeze(2)
        score = F.logsigmoid(presence) + F.logsigmoid(self.logits)
        # 1 - p q = (1 - p) + p (1 - q): a sum of two positive terms, which does not cancel as p q nears 1.
        rest = torch.logaddexp(F.logsigmoid(-presence), F.logsigmoid(presence) + F.logsigmoid(-self.logits))
        classes, each = self.logits.shape[1:]
        value, index = score.flatten(1).topk(min(count, classes * each), dim=1)
        logits = value.new_full((*index.shape, classes + 1), _NEVER)
        logits.scatter_(2, (index // each).unsqueeze(2), value.unsqueeze(2))
        logits[..., -1] = rest.flatten(1).gather(1, index)
        return index, logits


@torch.no_grad()
def match_within_classes(queries: ClassQueries, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """(B, G) int64: the query, in C*K, of each instance; -1 if absent or if its class has more instances than queries.

    boxes (n, 4) and labels (n,) of every image.  Costs are DETR's, with generalised IoU; queries are only matched to
    instances of their class.  Raises FloatingPointError if predictions are not finite.
    """
    if not all(bool(t.isfinite().all()) for t in (queries.logits, queries.presence, queries.boxes)):
        raise FloatingPointError("matching: class logits or boxes are not finite; lower train.lr or raise train.warmup")
    each = queries.logits.shape[2]
    assigned = torch.full((len(boxes), max([1, *(len(b) for b in boxes)])), -1, dtype=torch.int64)
    for image, (truth, classes) in enumerate(zip(boxes, labels, strict=True)):
        for label in classes.unique().tolist():
            own = torch.nonzero(classes == label)[:, 0]
            cost = _costs(queries.logits[image, label], queries.boxes[image, label], truth[own].to(queries.boxes))
            found, instances = linear_sum_assignment(cost.double().cpu().numpy().astype(np.float64))
            assigned[image, own.cpu()[instances]] = torch.from_numpy(found) + label * each
    return assigned.to(queries.logits.device)


def _costs(logits: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
    """(K, n) costs of queries with logits (K,) and boxes (K, 4) for instances' boxes (n, 4)."""
    from torchvision.ops import generalized_box_iou

    overlap = generalized_box_iou(predicted, truth)
    distance = torch.cdist(_centre_and_size(predicted), _centre_and_size(truth), p=1)
    return _L1 * distance - _OVERLAP * overlap - _CLASS * logits.sigmoid().unsqueeze(1)


def _centre_and_size(boxes: Tensor) -> Tensor:
    corner, opposite = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(corner + opposite) / 2, opposite - corner], -1)


def query_losses(
    queries: ClassQueries,
    assigned: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    weights: Sequence[Tensor],
    valid: Tensor | None,
    total: JointTotal = own_total,
) -> dict[str, Tensor]:
    """Weighted losses by name, for queries `assigned` (B, G) to instances.

    presence: cross-entropy of every class on every image.  query: cross-entropy of the queries of the classes on the
    image.  Both are proper scoring rules, so presence and query scores become probabilities.  box: L1 distance and
    generalised IoU of matched queries.  weights: of the instances (n,).  valid (B, H, W) bool: a query whose box lies
    mostly on invalid pixels is no negative.  If a class's likeliest query lies so, the class is not called absent.
    total: gives sums over the joint batch, by which the losses divide.
    """
    image, instance = torch.nonzero(assigned >= 0, as_tuple=True)
    query = assigned[image, instance]
    weight = _padded(weights, assigned)[image, instance]
    mass = total("matched queries", weight.sum()).clamp(min=1.0)
    inside = _inside(queries.boxes, valid)
    there = _presence_weights(queries, labels, weights)
    own = torch.zeros_like(queries.logits).flatten(1).index_put((image, query), torch.ones_like(weight))
    counts = (inside * (there > 0).unsqueeze(2)).flatten(1).index_put((image, query), weight)
    entropy = F.binary_cross_entropy_with_logits(queries.logits.flatten(1), own, reduction="none")
    return {
        "presence": _PRESENCE * _presence_loss(queries, there, inside, total),
        "query": _CLASS * (entropy * counts).sum() / mass,
        "box": _box_loss(queries.boxes.flatten(1, 2)[image, query], _padded(boxes, assigned)[image, instance], weight)
        / mass,
    }


def _padded(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """The rows (n, ...) of each image, padded with zeros to (B, G, ...)."""
    out = torch.zeros((*like.shape, *rows[0].shape[1:]), device=like.device)
    for padded, own in zip(out, rows, strict=True):
        padded[: len(own)] = own
    return out


def _presence_weights(queries: ClassQueries, labels: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Weights (B, C): the largest instance weight of each class on an image, 0 without instances."""
    there = torch.zeros_like(queries.presence)
    for row, classes, own in zip(there, labels, weights, strict=True):
        row.scatter_reduce_(0, classes, own.to(row.dtype), "amax")
    return there


def _presence_loss(queries: ClassQueries, there: Tensor, inside: Tensor, total: JointTotal) -> Tensor:
    """Mean cross-entropy of the classes' presence; present classes have the weights `there` (B, C)."""
    best = queries.logits.detach().argmax(2, keepdim=True)
    counts = torch.where(there > 0, there, inside.gather(2, best).squeeze(2))
    entropy = F.binary_cross_entropy_with_logits(queries.presence, (there > 0).to(there.dtype), reduction="none")
    return (entropy * counts).sum() / total("presence", counts.sum()).clamp(min=1.0)


def _box_loss(predicted: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Sum over matched boxes (n, 4): L1 distance of centres and sizes, and generalized IoU."""
    from torchvision.ops import generalized_box_iou_loss

    distance = F.l1_loss(_centre_and_size(predicted), _centre_and_size(truth), reduction="none").sum(-1)
    loss: Tensor = weight * (_L1 * distance + _OVERLAP * generalized_box_iou_loss(predicted, truth))
    return loss.sum()


@torch.no_grad()
def _inside(boxes: Tensor, valid: Tensor | None) -> Tensor:
    """Mask (B, C, K) float: 1 for boxes (B, C, K, 4) that lie at least half on valid pixels (B, H, W)."""
    if valid is None:
        return boxes.new_ones(boxes.shape[:-1])
    height, width = valid.shape[1:]
    sums = F.pad(valid.float().cumsum(1).cumsum(2), (1, 0, 1, 0))
    size = boxes.new_tensor([width, height, width, height])
    x0, y0, x1, y1 = (boxes.clamp(0, 1) * size).round().long().flatten(1, 2).unbind(-1)
    rows = torch.arange(len(boxes), device=boxes.device).unsqueeze(1)
    mass = sums[rows, y1, x1] - sums[rows, y0, x1] - sums[rows, y1, x0] + sums[rows, y0, x0]
    return (mass >= 0.5 * (x1 - x0) * (y1 - y0)).to(boxes.dtype).view(boxes.shape[:-1])
