"""Times of every operator on a GPU, float32, forward and backward: medians of single calls between two events."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.cases import NEGATIVES, TEMPERATURE, Case
from sskd_fast import ops

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


def seconds(case: Case) -> dict[tuple[str, str], float]:
    """By operator and pass, for a case whose pixels are all anchors and candidates."""
    inputs = (x.detach().cuda().requires_grad_() for x in case.inputs(torch.float32))
    masks, classes, weak, strong = inputs
    rows = ops.fuse_scores(masks, classes).flatten(0, 1).detach()
    drawn = ops.sample_negatives(rows, rows, NEGATIVES, seed=1)
    calls: dict[str, tuple[Callable[[], torch.Tensor], list[torch.Tensor]]] = {
        "score_fusion": (lambda: ops.fuse_scores(masks, classes), [masks, classes]),
        "negative_sampling": (lambda: ops.sample_negatives(rows, rows, NEGATIVES, seed=1), []),
        "pixel_contrast": (lambda: ops.pixel_contrast(weak, strong, weak, drawn, TEMPERATURE), [weak, strong]),
        "expected_pixel_contrast": (
            lambda: ops.expected_pixel_contrast(weak, strong, weak, rows, rows, NEGATIVES, TEMPERATURE),
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
