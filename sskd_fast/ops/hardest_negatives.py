"""Hardest negatives, public function: embeddings and drawn negatives -> the most similar negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from sskd_fast.ops._arguments import (
    CHECK_THEIR_OWN,
    check_count,
    check_device,
    check_floating,
    check_index_values,
    check_indices,
    check_same,
)
from sskd_fast.ops._library import implementation, register


@torch.no_grad()
def hardest_negatives(
    anchors: Tensor, candidates: Tensor, drawn: Tensor, num_negatives: int, backend: str = "auto"
) -> Tensor:
    """The R negatives most similar to each anchor, by cosine, among those drawn for it.

    anchors: (A, D), candidates: (M, D) floating point; drawn: (A, R') int32 or int64 indices with R' >= R, -1 ignored.
    Returns (A, R) int32, most similar first (NaN last), -1 at the end if fewer than R were drawn. No gradient.
    Raises ValueError or TypeError for a wrong argument (values are checked on the CPU only) and for more than 65,535
    draws of an anchor with "cuda", RuntimeError if an explicit backend cannot run.
    """
    check_count("num_negatives", num_negatives)
    anchors = check_floating("anchors", anchors, ("A", "D")).detach()
    candidates = check_floating("candidates", candidates, ("M", anchors.shape[1])).detach()
    check_same("anchors", anchors, candidates=candidates)
    drawn = check_indices("drawn", drawn, (anchors.shape[0], "R'"))
    check_device("anchors", anchors, drawn=drawn)
    if drawn.shape[1] < num_negatives:
        raise ValueError(f"drawn: found shape {tuple(drawn.shape)}, expected at least {num_negatives} columns")
    hardest: Tensor = _hardest_negatives(anchors, candidates, drawn, num_negatives, backend)
    return hardest


def _run(anchors: Tensor, candidates: Tensor, drawn: Tensor, num_negatives: int, backend: str) -> Tensor:
    if backend not in CHECK_THEIR_OWN:
        check_index_values("drawn", drawn, candidates.shape[0])
    return implementation(backend, "hardest_negatives")(anchors, candidates, drawn, num_negatives)


def _fake(anchors: Tensor, candidates: Tensor, drawn: Tensor, num_negatives: int, backend: str) -> Tensor:
    return drawn.new_empty(drawn.shape[0], num_negatives, dtype=torch.int32)


_hardest_negatives = register(
    "hardest_negatives(Tensor anchors, Tensor candidates, Tensor drawn, int num_negatives, str backend) -> Tensor",
    _run,
    _fake,
)
