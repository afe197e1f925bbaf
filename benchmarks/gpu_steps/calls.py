"""The calls to time and check on a GPU: each operator's passes, as functions without arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import CASES, NEGATIVES, TEMPERATURE, Case
from benchmarks.gpu_steps.record import Record
from sskd_fast import ops

# Used without a GPU.
TINY = Case(1, 2, 2)


def cases_of(record: Record) -> dict[str, Case]:
    """The published cases by name, or the tiny one."""
    return {TINY.name: TINY} if record.dry else CASES


def passes(forward: Callable[[], Tensor], leaves: list[Tensor]) -> dict[str, Callable[[], object]]:
    """The forward pass, and the backward pass alone on a retained graph."""
    value = forward().sum()
    return {"forward": forward, "backward": partial(torch.autograd.grad, value, leaves, retain_graph=True)}


def operator_calls(
    case: Case, dtype: torch.dtype, device: str, backend: str
) -> dict[tuple[str, str], Callable[[], object]]:
    """(operator, pass) -> call; every pixel of the case is an anchor and a candidate.

    dtype: of the embeddings and logits.
    """
    masks, classes, weak, strong = case.inputs(dtype, device)
    masks, classes, strong = (x.requires_grad_() for x in (masks, classes, strong))
    rows = ops.fuse_scores(masks, classes, backend=backend).flatten(0, 1).detach()
    sample = partial(ops.sample_negatives, rows, rows, NEGATIVES, seed=1, backend=backend)
    drawn = sample()
    hardest = partial(ops.hardest_negatives, weak.detach(), weak.detach(), drawn, NEGATIVES // 2, backend=backend)
    fuse = partial(ops.fuse_scores, masks, classes, backend=backend)
    contrast = partial(ops.pixel_contrast, weak, strong, weak, drawn, TEMPERATURE, backend=backend)
    found: dict[tuple[str, str], Callable[[], object]] = {
        ("negative_sampling", "forward"): sample,
        ("hardest_negatives", "forward"): hardest,
    }
    for operator, forward, leaves in (
        ("score_fusion", fuse, [masks, classes]),
        ("pixel_contrast", contrast, [weak, strong]),
    ):
        found |= {(operator, name): call for name, call in passes(forward, leaves).items()}
    return found | expected_calls(case, dtype, device, backend)


def expected_calls(
    case: Case, dtype: torch.dtype, device: str, backend: str
) -> dict[tuple[str, str], Callable[[], object]]:
    """(operator, pass) -> call, for the expected form."""
    masks, classes, weak, strong = case.inputs(dtype, device)
    rows = ops.fuse_scores(masks, classes, backend=backend).flatten(0, 1).detach()
    strong.requires_grad_()
    forward = partial(
        ops.expected_pixel_contrast, weak, strong, weak, rows, rows, NEGATIVES, TEMPERATURE, backend=backend
    )
    return {("expected_pixel_contrast", name): call for name, call in passes(forward, [weak, strong]).items()}
