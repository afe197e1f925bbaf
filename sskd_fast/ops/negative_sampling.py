"""Negative sampling, public functions: score vectors -> indices of negatives; the hardest of a larger draw."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sskd_fast import _backend
from sskd_fast.ops._arguments import check_choice, check_count, check_floating, check_groups, check_indices, check_same
from sskd_fast.reference import negative_sampling as reference

SCOPES = ("all", "other", "same")

_SAMPLE = {"reference": reference.sample_negatives}
_HARDEST = {"reference": reference.hardest_negatives}

_NORM_TOLERANCE = 1e-2


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

    anchor_scores: (A, E), candidate_scores: (M, E): non-negative rows of unit norm, as of `fuse_scores`; candidates
    weigh 1 - <y_a, y_q>. With candidate_scores None all weigh the same, and M is the length of candidate_weight or
    candidate_group, or A (the anchors themselves) without both. num_negatives: R. seed: an int or a one-element int64
    tensor. anchor_group: (A,), candidate_group: (M,) integers, such as the image of a pixel, for scope "same" (own
    group) or "other" (other groups); scope "all" ignores them. candidate_weight: (M,), finite and at least 0, a further
    factor of the weights.
    Returns (A, R) int32 in the order drawn, -1 at the end of a row where fewer than R candidates have positive weight.
    The result is a pure function of the arguments. No gradient.
    Raises ValueError or TypeError for a wrong argument, RuntimeError where an explicit backend cannot run.
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
        check_unit_rows("anchor_scores", anchors)
        check_unit_rows("candidate_scores", scores)
    elif candidate_weight is not None or candidate_group is not None:
        given = candidate_weight if candidate_weight is not None else candidate_group
        count = 0 if given is None else len(given)
    weight = None if candidate_weight is None else check_weight(candidate_weight, count).double()
    if scope == "all":
        own = torch.zeros(anchors.shape[0], dtype=torch.int64, device=anchors.device)
        candidates = reference.Candidates(scores, weight, own.new_zeros(count), True)
    else:
        if anchor_group is None or candidate_group is None:
            raise ValueError(f"scope={scope!r} needs anchor_group and candidate_group")
        own = check_groups("anchor_group", anchor_group, anchors.shape[0])
        group = check_groups("candidate_group", candidate_group, count)
        check_same("anchor_scores", anchors, anchor_group=own, candidate_group=group)
        candidates = reference.Candidates(scores, weight, group, scope == "same")
    return _SAMPLE[_backend.resolve(backend, anchors.device)](anchors, own, candidates, num_negatives, seed)


@torch.no_grad()
def hardest_negatives(
    anchors: Tensor, candidates: Tensor, drawn: Tensor, num_negatives: int, *, backend: str = "auto"
) -> Tensor:
    """The R most similar, by cosine of the embeddings, of the negatives drawn for each anchor.

    anchors: (A, D), candidates: (M, D) floating point; drawn: (A, R') int32 or int64 indices with R' >= R, -1 ignored.
    Returns (A, R) int32, most similar first, -1 at the end where fewer than R were drawn. No gradient.
    Raises ValueError or TypeError for a wrong argument, RuntimeError where an explicit backend cannot run.
    """
    check_count("num_negatives", num_negatives)
    anchors = check_floating("anchors", anchors, ("A", "D"))
    candidates = check_floating("candidates", candidates, ("M", anchors.shape[1]))
    check_same("anchors", anchors, candidates=candidates)
    drawn = check_indices("drawn", drawn, (anchors.shape[0], "R'"), candidates.shape[0])
    if drawn.shape[1] < num_negatives:
        raise ValueError(f"drawn: found shape {tuple(drawn.shape)}, expected at least {num_negatives} columns")
    run = _HARDEST[_backend.resolve(backend, anchors.device)]
    return run(anchors, F.normalize(candidates, dim=-1), drawn, num_negatives)


def check_weight(weight: Tensor, count: int) -> Tensor:
    """A (count,) floating-point tensor of weights; values are checked on the CPU only."""
    weight = check_floating("candidate_weight", weight, (count,)).detach()
    if weight.device.type == "cpu" and not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError("candidate_weight: found negative or non-finite values, expected finite weights of at least 0")
    return weight


def check_unit_rows(name: str, scores: Tensor) -> None:
    """Non-negative rows of unit norm; values are checked on the CPU only. Raises ValueError."""
    if scores.device.type != "cpu" or scores.numel() == 0:
        return
    norms = torch.linalg.vector_norm(scores, dim=1)
    wrong = ~((norms - 1).abs() <= _NORM_TOLERANCE)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: row {row} has norm {float(norms[row]):.4g}, expected rows of unit norm")
    if float(scores.min()) < -_NORM_TOLERANCE:
        raise ValueError(f"{name}: found entries down to {float(scores.min()):.4g}, expected non-negative rows")
