"""A few timed steps of the training loop, for the benchmarks of training steps."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sskd_fast.data.instances import Batch
from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.train.checkpoint import TrainingState
from sskd_fast.train.loop import train
from sskd_fast.train.progress import Log, Progress
from sskd_fast.train.schedule import Schedule

PARTS = ("data", "forward", "matching", "losses", "contrast", "backward")


def timed_steps(
    model: Segmenter,
    objective: Objective,
    draw: Callable[[int], Iterator[tuple[Batch, Batch | None]]],
    plan: Schedule,
    log: Log,
    folder: Path,
) -> dict[str, float]:
    """Milliseconds per step: of each part, "wall" and "cpu" in total; and page "faults" per step.

    log: of the folder, with one record for all steps (log_every is their number). On a GPU, wall time includes all of
    its work; times of the parts do so only if the host waits for every launch (CUDA_LAUNCH_BLOCKING=1).
    """
    progress = Progress(log, "timed", "timed", plan.steps, {})
    state = TrainingState(folder / "state.pt", "", resume=False)
    device = next(model.parameters()).device
    wait_for(device)
    wall, cpu, faults = time.perf_counter(), time.process_time(), page_faults()
    train(model, objective, draw, plan, state, progress, None, seed=0)
    wait_for(device)
    found = {
        "wall": 1000 * (time.perf_counter() - wall) / plan.steps,
        "cpu": 1000 * (time.process_time() - cpu) / plan.steps,
        "faults": (page_faults() - faults) / plan.steps,
    }
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    return found | {part: 1000 * last[f"seconds_{part}"] for part in PARTS}


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished all work; returns at once for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def page_faults() -> int:
    """Minor page faults of this process: pages mapped without reading a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
