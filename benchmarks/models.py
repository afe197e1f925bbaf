"""Teacher and student of the paper side by side: parameters, FLOPs, and the latency of one prediction on this machine.

`python -m benchmarks.models` builds both with random weights (the teacher takes 2.3 GB), counts FLOPs as `--dry-run`
does, and predicts one crop with each in turn, several times. The time does not depend on the weights. Times are CPU
seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sskd_fast.models.build import build_segmenter
from sskd_fast.run.dry_run import model_cost
from sskd_fast.settings import Config
from sskd_fast.yaml_settings import load_config

NAMES: tuple[Literal["student", "teacher"], ...] = ("student", "teacher")


def build(config: Config, name: Literal["student", "teacher"]) -> torch.nn.Module:
    """A model with random weights, in float32, ready to predict."""
    settings = getattr(config, name)
    settings = dataclasses.replace(
        settings,
        precision="float32",
        num_queries=config.num_queries,
        foundation=dataclasses.replace(settings.foundation, pretrained=False),
    )
    return build_segmenter(settings, [f"class{i}" for i in range(8)], weights=False).eval()


@torch.inference_mode()
def latencies(models: Sequence[torch.nn.Module], size: tuple[int, int], rounds: int) -> list[list[float]]:
    """CPU seconds, over all threads, of `rounds` predictions of one crop by each model, taking turns.

    CPU time, since other work on the machine stretches wall-clock time. On an idle machine with one thread both agree.
    """
    images = torch.rand(1, 3, *size)
    seconds: list[list[float]] = [[] for _ in models]
    for number in range(rounds):
        for name, model, of_model in zip(NAMES, models, seconds, strict=True):
            start = time.process_time()
            model(images)
            of_model.append(time.process_time() - start)
            print(f"round {number + 1}, {name}: {of_model[-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def measure(config: Config, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """The output of `main` as a dictionary."""
    costs = {name: model_cost(config, name, size) for name in NAMES}
    found = latencies([build(config, name) for name in NAMES], size, rounds)
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "size": list(size), "rounds": rounds,
    }  # fmt: skip
    for name, seconds in zip(NAMES, found, strict=True):
        result[name] = {
            "params": costs[name]["params"], "flops": costs[name]["flops"], "seconds": statistics.median(seconds),
            "fastest": min(seconds), "slowest": max(seconds),
        }  # fmt: skip
    return result


def table(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    student, teacher = result["student"], result["teacher"]
    lines = ["| | student | teacher | |", "|---|---|---|---|"]
    ratio = teacher["params"] / student["params"]
    lines.append(
        f"| parameters, M | {student['params'] / 1e6:.1f} | {teacher['params'] / 1e6:.1f} | {ratio:.1f} times |"
    )
    less = 100 * (1 - student["flops"] / teacher["flops"])
    lines.append(f"| GFLOPs | {student['flops'] / 1e9:.0f} | {teacher['flops'] / 1e9:.0f} | {less:.0f} % fewer |")
    spans = [f"{m['seconds']:.2f} ({m['fastest']:.2f} to {m['slowest']:.2f})" for m in (student, teacher)]
    lines.append(f"| CPU seconds | {spans[0]} | {spans[1]} | {teacher['seconds'] / student['seconds']:.1f} times |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), help="height and width of the crop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    parser.add_argument("overrides", nargs="*", metavar="section.setting=value")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = load_config([], arguments.overrides, "paper")
    result = measure(config, tuple(arguments.size), arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{result['machine']}, {result['threads']} threads, torch {result['torch']}, crops of "
        f"{result['size'][0]} x {result['size'][1]}, float32, {result['rounds']} rounds, median (fastest to slowest)\n"
    )
    print(table(result))


if __name__ == "__main__":
    main()
