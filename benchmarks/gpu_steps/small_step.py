"""`python -m benchmarks.gpu_steps.small_step BACKEND SIZE [--dry]`: every operator once, for sanitizers and profilers.

SIZE "odd": a few pixels, prime sizes and one past a tile, all scopes and dtypes, for the sanitizers. "8x703": the
published case once, after a warm-up, between the start and stop marks of a profiler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import CASES, Case
from benchmarks.gpu_steps.calls import operator_calls
from sskd_fast import ops
from sskd_fast.reference.score_fusion import Cues

# Each image has one row more than a tile of 64, and there are enough candidates for trials.
ODD, TINY = Case(2, 5, 13), Case(2, 1, 3)
CUES_BY_SCOPE: dict[str, Cues] = {"all": "fused", "other": "object", "same": "class"}


def odd(case: Case, device: torch.device, backend: str) -> None:
    """All operators forward and backward, in every scope, dtype and cue; also with more negatives than a group has."""
    generator = torch.Generator().manual_seed(0)
    pixels, width = case.pixels, 37 if case == ODD else 5
    few, many, size = (9, 70, (6, 11)) if case == ODD else (2, 4, (1, 2))

    def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    group = torch.arange(pixels, device=device) // (pixels // case.images)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for scope, cues in CUES_BY_SCOPE.items():
            masks = random(case.images, 7, case.height, case.width, dtype=dtype)
            classes = random(case.images, 7, 4, dtype=dtype)
            z, p = (random(pixels, width, dtype=dtype) for _ in range(2))
            settings: dict[str, Any] = {"anchor_group": group, "candidate_group": group, "scope": scope}
            settings["backend"] = backend
            fused = ops.fuse_scores(masks, classes, size, cues=cues, backend=backend)
            rows = ops.fuse_scores(masks, classes, cues=cues, backend=backend).flatten(0, 1)
            drawn, more = (ops.sample_negatives(rows, rows, n, seed=3, **settings) for n in (few, many))
            hard = ops.hardest_negatives(z, z, more, few, backend=backend)
            loss = ops.pixel_contrast(z, p, z, drawn, 0.2, margin=0.1, backend=backend)
            loss = loss + ops.pixel_contrast(z, p, z, hard, 0.2, backend=backend)
            loss = loss + ops.expected_pixel_contrast(z, p, z, rows, rows, few, 0.2, **settings) + fused.square().sum()
            torch.autograd.grad(loss, [masks, classes, z, p])


def published(case: Case, device: str, backend: str) -> Callable[[], None]:
    """A call that runs every pass of every operator, in float32."""
    calls = operator_calls(case, torch.float32, device, backend)

    def run() -> None:
        for call in calls.values():
            call()

    return run


def between_marks(run: Callable[[], None]) -> None:
    """Runs a call between the start and stop marks of a profiler."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main() -> None:
    """Runs the step; with --dry on the CPU, in Triton's interpreter."""
    backend, size = sys.argv[1:3]
    device = torch.device("cpu" if "--dry" in sys.argv else "cuda")
    if size == "odd":
        odd(ODD if device.type == "cuda" else TINY, device, backend)
    else:
        run = published(CASES[size], device.type, backend)
        run()
        if device.type == "cuda":
            between_marks(run)
    print(f"{backend} {size}: ran")


if __name__ == "__main__":
    main()
