"""The share of a training step that L_pxl takes -> docs/benchmarks.md.

`python -m benchmarks.contrast_cost` times steps of the student of `--preset paper`, with random weights and images, on
one thread: without L_pxl, with the preset's, and with a strong view of every image. The variants take turns. CPU
seconds are compared, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date

import torch

from benchmarks.marked import add_page_option, write_part
from benchmarks.other_models import NAMES, PAGE, random_batch
from benchmarks.report import table
from sskd_fast.data.instances import Batch
from sskd_fast.exported.parity import machine
from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.objective import Objective
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.settings import Config
from sskd_fast.yaml_settings import load_config

COMMAND = "python -m benchmarks.contrast_cost"
NONE = "no L_pxl"
# Anchors per image if every image has a strong view: fewer per step than the preset's on crops of 512 x 512.
ANCHORS = 1024


def variants(config: Config) -> dict[str, ContrastConfig | None]:
    """Name -> settings of L_pxl, None without it."""
    every = dataclasses.replace(config.contrast, strong_every=1, max_anchors=ANCHORS)
    return {NONE: None, "`--preset paper`": config.contrast, "a strong view of every image": every}


def step_seconds(model: Segmenter, config: Config, contrast: ContrastConfig | None, batch: Batch) -> float:
    """CPU seconds of forward, losses and backward of a step; the batch is its labelled and its unlabelled images."""
    weight = 0.0 if contrast is None else config.train.lam_pxl
    objective = Objective.of(config.loss, contrast or config.contrast, lam_semi=config.train.lam_semi, lam_pxl=weight)
    model.zero_grad()
    start = time.process_time()
    objective(model, batch, batch, progress=0.5, seed=0).loss.backward()
    return time.process_time() - start


def measure(images: int, side: int, rounds: int) -> str:
    """The table: anchors of a step, CPU seconds, and how much longer a step is than without L_pxl."""
    config = load_config([], [], "paper")
    student = dataclasses.replace(config.student, precision="float32", num_queries=config.num_queries)
    model = build_segmenter(student, NAMES, weights=False).train()
    batch = random_batch(side, images)
    pixels = model.embed(model.encode(batch.weak[:1])).shape[-2:].numel()
    forms = variants(config)
    found: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(1 + rounds):
        for name, contrast in forms.items():
            seconds = step_seconds(model, config, contrast, batch)
            if number:  # the first round warms up
                found[name].append(seconds)
    lines = []
    for name, contrast in forms.items():
        every = 0 if contrast is None else len(range(0, 2 * images, contrast.strong_every))
        anchors = 0 if contrast is None else every * min(pixels, contrast.max_anchors)
        more = [own / base - 1 for own, base in zip(found[name], found[NONE], strict=True)]
        times, shares = (statistics.median(x) for x in (found[name], more))
        spread = f"{100 * shares:+.0f} % ({100 * min(more):+.0f} to {100 * max(more):+.0f})" if contrast else ""
        lines.append([name, str(every), f"{anchors:,}", f"{times:.1f}", spread])
    return table(["", "strong views", "anchors", "CPU seconds", "longer by"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes the page; see the module's docstring."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--images", type=int, default=4, help="labelled images of a step, and as many unlabelled ones")
    parser.add_argument("--side", type=int, default=512, help="height and width of the crops")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each variant")
    add_page_option(parser, COMMAND, PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measure(options.images, options.side, options.rounds)
    content = (
        f"Written on {date.today()} on {machine()}, 1 thread; torch {torch.__version__}. Medians of {options.rounds} "
        f"rounds in turns (least to most), float32. A step: {options.images} labelled and {options.images} unlabelled "
        f"crops of {options.side} x {options.side}; forward, losses, backward.\n\n{found}"
    )
    print(content)
    write_part(options.page, COMMAND, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
