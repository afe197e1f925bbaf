"""Each operator alone, on both backends, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import CASES, DTYPES, FINE, NEGATIVES, TEMPERATURE, scores_of
from sskd_fast import ops

SAMPLED = [(c, d, b) for c in CASES for d in DTYPES for b in ("cpu", "reference") if b == "cpu" or CASES[c] != FINE]
IDS = [f"{b}-{c}-{d}" for c, d, b in SAMPLED]


def timed(
    benchmark: Any, operator: str, mode: str, case: str, dtype: str, backend: str, run: Callable[[], Any]
) -> None:
    """Times a call and records its operator, mode, case, dtype and backend."""
    benchmark.group = f"{operator} {mode} {case} {dtype}"
    benchmark.extra_info.update(operator=operator, mode=mode, contender=backend, case=case, dtype=dtype)
    benchmark.pedantic(run, rounds=7 if backend == "cpu" else 3, warmup_rounds=1)


def gradient_of(loss: Tensor, weak: Tensor) -> Callable[[], Any]:
    """The backward pass alone."""
    return lambda: torch.autograd.grad(loss, weak, retain_graph=True)


@pytest.mark.parametrize(("case", "dtype", "backend"), SAMPLED, ids=IDS)
def test_score_fusion(benchmark: Any, case: str, dtype: str, backend: str) -> None:
    masks, classes, _, _ = CASES[case].inputs(DTYPES[dtype])
    run = partial(ops.fuse_scores, masks, classes, backend=backend)
    timed(benchmark, "score_fusion", "forward", case, dtype, backend, run)


@pytest.mark.parametrize(("case", "dtype", "backend"), SAMPLED, ids=IDS)
def test_negative_sampling(benchmark: Any, case: str, dtype: str, backend: str) -> None:
    scores = scores_of(CASES[case], DTYPES[dtype])
    run = partial(ops.sample_negatives, scores, scores, NEGATIVES, seed=1, backend=backend)
    timed(benchmark, "negative_sampling", "forward", case, dtype, backend, run)


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize(("case", "dtype", "backend"), SAMPLED, ids=IDS)
def test_pixel_contrast(benchmark: Any, case: str, dtype: str, backend: str, mode: str) -> None:
    _, _, weak, strong = CASES[case].inputs(DTYPES[dtype])
    count = CASES[case].pixels
    drawn = torch.randint(count, (count, NEGATIVES), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    run = partial(ops.pixel_contrast, weak, strong, weak, drawn, TEMPERATURE, backend=backend)
    timed(
        benchmark, "pixel_contrast", mode, case, dtype, backend, run if mode == "forward" else gradient_of(run(), weak)
    )


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", [c for c in CASES if CASES[c] != FINE])
def test_expected_pixel_contrast(benchmark: Any, case: str, backend: str, mode: str) -> None:
    _, _, weak, strong = CASES[case].inputs(torch.float32)
    scores = scores_of(CASES[case])
    inputs = weak, strong, weak, scores, scores, NEGATIVES, TEMPERATURE
    run = partial(ops.expected_pixel_contrast, *inputs, backend=backend)
    call = run if mode == "forward" else gradient_of(run(), weak)
    timed(benchmark, "expected_pixel_contrast", mode, case, "float32", backend, call)
