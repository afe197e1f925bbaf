"""Time of a training step on this machine by its parts, and the gain from the main job's use of threads and memory.

`python -m benchmarks.training_step` trains the student (or `--model teacher`) of the default preset on labelled images
for a few steps, in separate processes that take turns.  The variants: as in the main job; with freed memory returned to
the system, as without `keep_freed_memory`; with GNU OpenMP's default spinning of waiting threads.  `--beside 2` keeps
two other processes busy meanwhile.  `--device cuda` trains on a GPU, for which a step does not wait.  There, the times
of the parts come from a second process that waits for every kernel, and add up to more than a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.timed_steps import PARTS, timed_steps
from sskd_fast import _process
from sskd_fast.data.instances import Batch
from sskd_fast.method import STAGE
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import RunResults
from sskd_fast.run.sources import target_sources
from sskd_fast.run.stage_settings import stage_objective
from sskd_fast.run.training import stage_training, training_batches
from sskd_fast.train.progress import Log
from sskd_fast.train.schedule import Schedule
from sskd_fast.yaml_settings import load_config

# Variant -> (spins of a waiting thread, True if freed memory is kept).
USUAL_SPINS = 300_000  # libgomp's default
VARIANTS = {
    "as the main job": (_process.SPINS, True),
    "memory given back": (_process.SPINS, False),
    "long waits": (USUAL_SPINS, True),
}
WARM_UP = 5


def measure(model: str, steps: int, threads: int, device: torch.device) -> dict[str, float]:
    """Milliseconds per step (of each part, "wall" and "cpu" in total) and page "faults" per step, in this process."""
    sizes = ["data.embedded_unlabeled=2", "data.embedded_val=2", f"train.log_every={steps}"]
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as place:
        config, folder = load_config([], sizes, "default"), Path(place)
        sources, log = target_sources(config, folder), Log(folder)
        models, stage = RunModels(config, sources, RunResults(folder, {}), device), STAGE[f"supervised_{model}"]
        training, found = stage_training(models, stage), {}
        network, objective = models.start(stage), stage_objective(config, stage)

        def draw(step: int) -> Iterator[tuple[Batch, Batch | None]]:
            return training_batches(config, sources, training, step)

        for count in (WARM_UP, steps):
            plan = Schedule(config.train, dataclasses.replace(training.budget, steps=count))
            found = timed_steps(network, objective, draw, plan, log, folder)
        log.close()
        return found


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keeps `count` other processes computing."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def in_a_process(variant: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The result of `measure` in a fresh process with the settings of the variant."""
    spins, keep = VARIANTS[variant]
    command = [sys.executable, "-m", "benchmarks.training_step", "--child", *(["--keep"] if keep else [])]
    command += ["--model", arguments.model, "--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    command += ["--device", arguments.device]

    def child(**more: str) -> dict[str, float]:
        environment = {**os.environ, "GOMP_SPINCOUNT": str(spins), **more}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        result: dict[str, float] = json.loads(done.stdout)
        return result

    found = child()
    if arguments.device == "cuda":
        waiting = child(CUDA_LAUNCH_BLOCKING="1")
        found |= {part: waiting[part] for part in PARTS}
    return found


def table(found: dict[str, list[dict[str, float]]], first: str) -> str:
    """Medians over the rounds as a Markdown table; wall time also with its range, and relative to the first variant."""
    lines = ["| | ms per step | of the first | CPU ms | page faults | " + " | ".join(PARTS) + " |"]
    lines.append("|---" * (5 + len(PARTS)) + "|")
    base = statistics.median(r["wall"] for r in found[first])
    for variant, rounds in found.items():
        middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        walls = [r["wall"] for r in rounds]
        cells = [f"{middle['wall']:.0f} ({min(walls):.0f} to {max(walls):.0f})", f"{middle['wall'] / base:.2f}"]
        cells += [f"{middle[key]:.0f}" for key in ("cpu", "faults", *PARTS)]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--model", choices=("student", "teacher"), default="student")
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after a few warm-up steps")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant")
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores")
    parser.add_argument("--beside", type=int, default=0, help="number of other processes to keep busy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what trains")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; leave --device out to time the CPU")
    if options.child:
        if options.keep:
            _process.keep_freed_memory()
        print(json.dumps(measure(options.model, options.steps, options.threads, torch.device(options.device))))
        return 0
    with busy(options.beside):
        rounds = [{v: in_a_process(v, options) for v in VARIANTS} for _ in range(options.rounds)]
    gpu = f"{torch.cuda.get_device_name()}, " if options.device == "cuda" else ""
    print(
        f"{gpu}{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{options.threads or 'all'} threads, {options.beside} busy processes beside; "
        f"Python {platform.python_version()}, torch {torch.__version__}; "
        f"{options.rounds} rounds of {options.steps} steps of the {options.model}\n"
    )
    print(table({variant: [r[variant] for r in rounds] for variant in VARIANTS}, next(iter(VARIANTS))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
