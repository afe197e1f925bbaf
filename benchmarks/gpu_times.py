"""Times of every operator on a GPU by backend, forward and backward: medians of single calls between two events."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import NEGATIVES, TEMPERATURE, Case
from sskd_fast import ops

BACKENDS = ("triton", "cuda")
_CALLS, _WARM_UP = 20, 3


def median(call: Callable[[], object]) -> float:
    """Seconds of a call on the present stream."""
    times = []
    for turn in range(_WARM_UP + _CALLS):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        if turn >= _WARM_UP:
            times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times)


def seconds(case: Case, backend: str, dtype: torch.dtype = torch.float32) -> dict[tuple[str, str], float]:
    """By operator and pass, for a case whose pixels are all anchors and candidates.

    backend: "triton", "cuda" or any other that runs on CUDA tensors. dtype: of the embeddings.
    """
    masks, classes, *_ = (x.detach().requires_grad_() for x in case.inputs(torch.float32, "cuda"))
    weak, strong = (x.detach().requires_grad_() for x in case.inputs(dtype, "cuda")[2:])
    rows = ops.fuse_scores(masks, classes, backend=backend).flatten(0, 1).detach()
    draw = partial(ops.sample_negatives, rows, rows, seed=1, backend=backend)
    drawn, many = draw(NEGATIVES), draw(2 * NEGATIVES)
    calls: dict[str, tuple[Callable[[], torch.Tensor], list[torch.Tensor]]] = {
        "score_fusion": (partial(ops.fuse_scores, masks, classes, backend=backend), [masks, classes]),
        "negative_sampling": (partial(draw, NEGATIVES), []),
        "hardest_negatives": (partial(ops.hardest_negatives, weak, weak, many, NEGATIVES, backend), []),
        "pixel_contrast": (
            partial(ops.pixel_contrast, weak, strong, weak, drawn, TEMPERATURE, backend=backend),
            [weak, strong],
        ),
        "expected_pixel_contrast": (
            partial(
                ops.expected_pixel_contrast, weak, strong, weak, rows, rows, NEGATIVES, TEMPERATURE, backend=backend
            ),
            [weak, strong],
        ),
    }
    result = {}
    for operator, (call, leaves) in calls.items():
        result[operator, "forward"] = median(call)
        if leaves:
            value = call().sum()
            result[operator, "backward"] = median(partial(torch.autograd.grad, value, leaves, retain_graph=True))
    return result
