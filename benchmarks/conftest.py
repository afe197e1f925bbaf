"""Fixtures: every benchmark runs on two threads, and only if the operators are correct."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.cases import Case
from sskd_fast import ops

THREADS = 2


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def right_before_fast() -> None:
    """Refuses to time operators that do not agree with the reference."""
    masks, classes, weak, strong = Case(2, 7, 11).inputs(torch.float64)
    results = []
    for backend in ("reference", "cpu"):
        scores = ops.fuse_scores(masks, classes, backend=backend).flatten(0, 1)
        drawn = ops.sample_negatives(scores, scores, 20, seed=1, backend=backend)
        loss = ops.pixel_contrast(weak, strong, weak, drawn, 0.2, backend=backend)
        results.append([scores, drawn, loss, *torch.autograd.grad(loss, weak)])
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted)
