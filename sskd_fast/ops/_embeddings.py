"""Code shared by the two forms of pixel contrast: checks of embeddings, their storage, and the reduction of losses."""

from __future__ import annotations

import torch
from torch import Tensor

from sskd_fast.ops._arguments import check_same, check_stored


def check_embeddings(anchors: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check embeddings (A, D), (A, D) and (M, D), floating point of one dtype. Raises TypeError or ValueError."""
    anchors = check_stored("anchors", anchors, ("A", "D"))
    positives = check_stored("positives", positives, tuple(anchors.shape))
    candidates = check_stored("candidates", candidates, ("M", anchors.shape[1]))
    check_same("anchors", anchors, positives=positives, candidates=candidates)
    return anchors, positives, candidates


def compute_dtype(embeddings: Tensor) -> torch.dtype:
    """The dtype of sums and products: float64 for float64, float32 otherwise."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def stored(backend: str, *embeddings: Tensor) -> tuple[Tensor, ...]:
    """The embeddings as the backend reads them: half precision is widened for the reference alone."""
    return tuple(x.to(compute_dtype(x)) for x in embeddings) if backend == "reference" else embeddings


def distinct(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors, with views in place of repeats: compilers accept no tensor twice in one Function."""
    seen: list[Tensor] = []
    result = []
    for tensor in tensors:
        again = tensor is not None and any(tensor is other for other in seen)
        result.append(tensor.view_as(tensor) if tensor is not None and again else tensor)
        if tensor is not None:
            seen.append(tensor)
    return tuple(result)


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The losses (A,) for "none", else their "sum" or "mean", which is 0 without anchors."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / max(1, loss.shape[0])
