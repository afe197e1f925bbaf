"""Negative sampling, public function: score vectors -> indices of negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sskd_fast.ops._arguments import (
    check_choice,
    check_count,
    check_device,
    check_floating,
    check_groups,
    check_same,
    check_seed,
    check_unit_rows,
    check_weight,
    check_weight_values,
)
from sskd_fast.ops._library import implementation, register

SCOPES = ("all", "other", "same")


@torch.no_grad()
def sample_negatives(
    anchor_scores: Tensor,
    candidate_scores: Tensor | None,
    num_negatives: int,
    *,
    seed: int | Tensor,
    anchor_group: Tensor | None = None,
    candidate_group: Tensor | None = None,
    scope: str = "all",
    backend: str = "auto",
    candidate_weight: Tensor | None = None,
) -> Tensor:
    """Negatives of every anchor: R candidates without replacement, with probability proportional to dissimilarity.

    anchor_scores: (A, E), candidate_scores: (M, E): non-negative rows of unit norm, as `fuse_scores` returns; a
    candidate has weight 1 - <y_a, y_q>. If candidate_scores is None, all weights are equal, and M is the length of
    candidate_weight or candidate_group, or A (the anchors themselves) without both. num_negatives: R. seed: an int or a
    one-element int64 tensor (a compiled function is traced again for every int). anchor_group: (A,), candidate_group:
    (M,) integers, such as the image of a pixel, for scope "same" (own group) or "other" (other groups); scope "all"
    ignores them. candidate_weight: (M,), finite and at least 0, a further factor of the weights.
    Returns (A, R) int32 in the order drawn; -1 at the end of a row if fewer than R candidates have positive weight.
    The result is a pure function of the arguments, the same for any number of threads. No gradient.
    Raises ValueError or TypeError for a wrong argument (values are checked on the CPU only), RuntimeError if an
    explicit backend cannot run.
    Source: successive sampling by s_deb(a, q) = max(0, 1 - <y_a, y_q>), the law of Gumbel top-k on its logarithm.
    """
    check_count("num_negatives", num_negatives)
    check_choice("scope", scope, SCOPES)
    anchors = check_floating("anchor_scores", anchor_scores, ("A", "E")).detach()
    scores = None
    count = anchors.shape[0]
    if candidate_scores is not None:
        scores = check_floating("candidate_scores", candidate_scores, ("M", anchors.shape[1])).detach()
        check_same("anchor_scores", anchors, candidate_scores=scores)
        count = scores.shape[0]
    elif candidate_weight is not None or candidate_group is not None:
        given = candidate_weight if candidate_weight is not None else candidate_group
        count = 0 if given is None else len(given)
    weight = None
    if candidate_weight is not None:
        weight = check_weight(candidate_weight, count)
        check_device("anchor_scores", anchors, candidate_weight=weight)
        weight = weight.double()
    if scope == "all":
        # "Other than a group that no candidate has" is every candidate. One number for all is one group at first sight.
        nobodys, everyones = torch.arange(-1, 1, device=anchors.device).split(1)
        own, group = nobodys.expand(anchors.shape[0]), everyones.expand(count)
    else:
        if anchor_group is None or candidate_group is None:
            raise ValueError(f"scope={scope!r} needs anchor_group and candidate_group")
        own = check_groups("anchor_group", anchor_group, anchors.shape[0])
        group = check_groups("candidate_group", candidate_group, count)
        check_device("anchor_scores", anchors, anchor_group=own, candidate_group=group)
    key = check_seed(seed, anchors.device)
    inputs = anchors, own, scores, weight, group, scope == "same"
    drawn: Tensor = negative_sampling(*inputs, num_negatives, key, backend)
    return drawn


def _run(
    anchors: Tensor, own: Tensor, scores: Tensor | None, weight: Tensor | None, group: Tensor, *settings: Any
) -> Tensor:
    *rest, backend = settings
    if weight is not None:
        check_weight_values(weight)
        # The smallest positive number, since no weight may be positive.
        weight = weight / weight.amax().clamp_min(5e-324) if len(weight) else weight
    if scores is not None and backend != "cpu":
        check_unit_rows("anchor_scores", anchors)
        check_unit_rows("candidate_scores", scores)
    drawn: Tensor = implementation(backend, "negative_sampling")(anchors, own, scores, weight, group, *rest)
    return drawn


def _fake(anchors: Tensor, *rest: Any) -> Tensor:
    *_, num_negatives, _seed, _backend = rest
    return anchors.new_empty(anchors.shape[0], num_negatives, dtype=torch.int32)


negative_sampling = register(
    "negative_sampling(Tensor anchor_scores, Tensor anchor_group, Tensor? candidate_scores, Tensor? candidate_weight,"
    " Tensor candidate_group, bool same, int num_negatives, Tensor seed, str backend) -> Tensor",
    _run,
    _fake,
)
