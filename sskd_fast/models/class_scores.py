"""Conversion of independent class scores to the form that losses and prediction share, and back.

Shape letters: C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def with_no_object(scores_logits: Tensor) -> Tensor:
    """Convert per-class sigmoid logits (..., C), C >= 1, to log-probabilities (..., C+1), no-object last.

    With p = sigmoid(logits), the classes share max p in proportion to p, and no-object has 1 - max p.  Computed in
    logarithms throughout, so that extreme classes keep finite values and gradients, and at least in float32.
    """
    logits = scores_logits.to(torch.promote_types(scores_logits.dtype, torch.float32))
    best, scores = logits.amax(-1, keepdim=True), F.logsigmoid(logits)
    shares = scores - scores.logsumexp(-1, keepdim=True)
    return torch.cat([F.logsigmoid(best) + shares, F.logsigmoid(-best)], -1)


def independent_scores(class_logits: Tensor) -> Tensor:
    """Recover the probabilities p (..., C) from logits of `with_no_object` (..., C+1), which may have any offset.

    These are the scores of a prediction. They do not depend on the other classes, unlike shares of one, which fall with
    the number of classes.
    """
    found = class_logits.log_softmax(-1)
    classes = found[..., :-1]
    return -torch.expm1(found[..., -1:]) * (classes - classes.amax(-1, keepdim=True)).exp()
