"""Class scores that are independent of one another, in the form that losses and prediction share, and back.

Shape letters: C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def with_no_object(scores_logits: Tensor) -> Tensor:
    """Per-class sigmoid logits (..., C), C >= 1 -> log-probabilities (..., C+1), no-object last.

    With p = sigmoid(logits), the classes share max p in proportion to p, and no object has 1 - max p.  In logarithms
    throughout, so that sure and hopeless classes keep finite values and gradients.  Computed in float32 at least.
    """
    logits = scores_logits.to(torch.promote_types(scores_logits.dtype, torch.float32))
    best, scores = logits.amax(-1, keepdim=True), F.logsigmoid(logits)
    shares = scores - scores.logsumexp(-1, keepdim=True)
    return torch.cat([F.logsigmoid(best) + shares, F.logsigmoid(-best)], -1)


def independent_scores(class_logits: Tensor) -> Tensor:
    """Logits of `with_no_object` (..., C+1), up to a constant -> the probabilities p (..., C) that they were made of.

    The scores of a prediction: a class keeps its own whatever others there are, where its share of one would fall with
    their number.
    """
    found = class_logits.log_softmax(-1)
    classes = found[..., :-1]
    return -torch.expm1(found[..., -1:]) * (classes - classes.amax(-1, keepdim=True)).exp()
