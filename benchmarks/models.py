"""Teacher and student of the paper side by side: parameters, FLOPs, and the latency of one prediction on this machine.

`python -m benchmarks.models` builds both with random weights (the teacher takes 2.3 GB), or one of them with other
settings. It counts FLOPs as `--dry-run` does, and predicts one crop with each in turn, several times. The time does
not depend on the weights. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import table as markdown
from sskd_fast.models.build import build_segmenter
from sskd_fast.run.dry_run import ModelName, model_cost
from sskd_fast.settings import Config
from sskd_fast.yaml_settings import load_config

NAMES: tuple[ModelName, ...] = ("student", "teacher")


def build(config: Config, name: ModelName) -> torch.nn.Module:
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
def latencies(
    models: Mapping[ModelName, torch.nn.Module], size: tuple[int, int], rounds: int
) -> dict[ModelName, list[float]]:
    """CPU seconds, over all threads, of `rounds` predictions of one crop by each model, taking turns.

    CPU time, since other work on the machine stretches wall-clock time. On an idle machine with one thread both agree.
    """
    images = torch.rand(1, 3, *size)
    seconds: dict[ModelName, list[float]] = {name: [] for name in models}
    for number in range(rounds):
        for name, model in models.items():
            start = time.process_time()
            model(images)
            seconds[name].append(time.process_time() - start)
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def measure(config: Config, names: Sequence[ModelName], size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """The output of `main` as a dictionary."""
    costs = {name: model_cost(config, name, size) for name in names}
    found = latencies({name: build(config, name) for name in names}, size, rounds)
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": list(size),
        "rounds": rounds,
    }
    for name, seconds in found.items():
        result[name] = {
            "params": costs[name]["params"],
            "flops": costs[name]["flops"],
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
        }
    return result


def table(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table; of two models also how they compare."""
    names = [name for name in NAMES if name in result]
    models = [result[name] for name in names]
    rows = [
        ["parameters, M", *(f"{m['params'] / 1e6:.1f}" for m in models)],
        ["GFLOPs", *(f"{m['flops'] / 1e9:.0f}" for m in models)],
        ["CPU seconds", *(f"{m['seconds']:.2f} ({m['fastest']:.2f} to {m['slowest']:.2f})" for m in models)],
    ]
    if len(models) == 2:
        student, teacher = models
        rows[0].append(f"{teacher['params'] / student['params']:.1f} times")
        rows[1].append(f"{100 * (1 - student['flops'] / teacher['flops']):.0f} % fewer")
        rows[2].append(f"{teacher['seconds'] / student['seconds']:.1f} times")
    return markdown(["", *names, ""][: len(rows[0])], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="a YAML file of settings, in place of --preset paper"
    )
    parser.add_argument("--model", choices=NAMES, help="this one alone")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), help="height and width of the crop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    parser.add_argument("overrides", nargs="*", metavar="section.setting=value")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config, arguments.overrides, "default" if arguments.config else "paper")
    names = (arguments.model,) if arguments.model else NAMES
    result = measure(config, names, tuple(arguments.size), arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{result['machine']}, {result['threads']} threads, torch {result['torch']}, crops of "
        f"{result['size'][0]} x {result['size'][1]}, float32, {result['rounds']} rounds, median (fastest to slowest)\n"
    )
    print(table(result))


if __name__ == "__main__":
    main()
