"""docs/benchmarks.md from the records of pytest-benchmark, the memory of each step and the peaks of the machine."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, CLASSES, COARSE, DTYPES, FINE, MIDDLE, NEGATIVES, QUERIES, WIDTH
from benchmarks.contenders import CONTENDERS
from benchmarks.work import work_of


@dataclass(frozen=True)
class Measured:
    """The findings of one run of `python -m benchmarks`; seconds. peaks: of benchmarks/peaks.cpp, by name."""

    records: list[dict[str, Any]]
    memory: dict[tuple[str, str, str], int | str]
    peaks: dict[str, float]
    build_seconds: float
    import_seconds: list[float]

    def record(self, **wanted: str) -> dict[str, Any] | None:
        matching = (r for r in self.records if all(r["extra_info"].get(k) == v for k, v in wanted.items()))
        return next(matching, None)

    def median(self, **wanted: str) -> float | None:
        record = self.record(**wanted)
        return None if record is None else float(record["stats"]["median"])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    lines.insert(1, "|" + "---|" * lines[0].count(" | ") + "---|")
    return "\n".join(lines)


def milliseconds(record: dict[str, Any] | None) -> str:
    """The median, followed by the interquartile range of the rounds."""
    if record is None:
        return "-"
    stats = record["stats"]
    return f"{1e3 * stats['median']:.1f} ({1e3 * stats['q1']:.1f} to {1e3 * stats['q3']:.1f})"


def megabytes(value: int | str | None) -> str:
    return f"{value / 2**20:.0f}" if isinstance(value, int) else "-"


def steps(m: Measured) -> str:
    rows = []
    for case in CASES:
        for dtype in DTYPES:
            ours = m.median(operator="step", contender="cpu", case=case, dtype=dtype)
            for contender in CONTENDERS:
                record = m.record(operator="step", contender=contender, case=case, dtype=dtype)
                memory = m.memory.get((contender, case, dtype))
                if record is None:
                    rows.append([case, dtype, contender, "-", "-", f"- ({memory})" if isinstance(memory, str) else "-"])
                    continue
                ratio = f"{record['stats']['median'] / ours:.1f}" if ours else "-"
                rows.append([case, dtype, contender, milliseconds(record), ratio, megabytes(memory)])
    return table(["images x pixels", "dtype", "", "ms per step", "times ours", "extra MB"], rows)


def targets(m: Measured) -> str:
    def step(case: str, contender: str = "cpu") -> float:
        return m.median(operator="step", contender=contender, case=case, dtype="float32") or math.nan

    def memory(case: str, contender: str = "cpu") -> float:
        found = m.memory.get((contender, case, "float32"))
        return found if isinstance(found, int) else math.nan

    coarse, middle, fine = COARSE.name, MIDDLE.name, FINE.name
    dense = min(("dense", "dense-compiled"), key=lambda name: (math.isnan(step(coarse, name)), step(coarse, name)))
    flat = m.record(operator="step", contender="cpu", case=f"{coarse}-sharpness1", dtype="float32")
    gain = step(coarse, dense) / step(coarse)
    return f"""- {coarse}: {gain:.1f} times faster than the fastest dense implementation ({dense}),
  with {memory(coarse) / memory(coarse, dense):.2f} of its extra memory.
- {fine}, eight times the pixels of {middle}: {step(fine) / step(middle):.1f} times its time,
  {memory(fine) / 2**30:.2f} GiB of extra memory.
- {coarse} with scores that are nearly alike (logits of standard deviation 1): {milliseconds(flat)} ms."""


def operators(m: Measured) -> str:
    rows = []
    for record in m.records:
        info = record["extra_info"]
        if info["operator"] == "step" or info["contender"] != "cpu":
            continue
        operator, mode, case, dtype = info["operator"], info["mode"], info["case"], info["dtype"]
        other = m.median(operator=operator, mode=mode, case=case, dtype=dtype, contender="reference")
        median = record["stats"]["median"]
        work = work_of(operator, mode, case, dtype)
        least = work.least_seconds(m.peaks)
        amounts = work.random_bytes / 1e6, work.ordered_bytes / 1e6, work.multiply_adds / 1e6
        row = [operator, mode, case, dtype, milliseconds(record), f"{other / median:.1f}" if other else "-"]
        rows.append([*row, *(f"{x:.0f}" for x in amounts), f"{1e3 * least:.1f}", f"{median / least:.1f}"])
    head = ["operator", "mode", "case", "dtype", "ms", "reference / ours", "MB in random order", "MB in order"]
    return table([*head, "multiply-adds, M", "least ms", "ours / least"], rows)


def peaks(m: Measured) -> str:
    """GB/s by size of the table, and multiply-adds."""
    sizes = sorted(int(name.split("-")[1]) for name in m.peaks if name.startswith("random"))
    rows = [
        [f"{size} MB", *(f"{m.peaks[f'{kind}-{size}-MB']:.0f}" for kind in ("random", "sequential"))] for size in sizes
    ]
    return table(["a table of", "GB/s in random order", "GB/s in order"], rows)


def data_path(m: Measured) -> str:
    """Images per second of one thread, and the share of the matching in a step."""
    rows = []
    for record in m.records:
        info, stats = record["extra_info"], record["stats"]
        if "images" in info and info["operator"] != "matching":
            rates = [info["images"] / stats[quantile] for quantile in ("median", "q3", "q1")]
            rows.append([info["operator"], info["contender"], "{:.1f} ({:.1f} to {:.1f})".format(*rates)])
    step = m.record(operator="matching")
    if step is not None:
        share = 100 * step["extra_info"]["matching_seconds"] / step["stats"]["median"]
        rows.append(["matching in a step", "", f"{share:.1f} % of {step['stats']['median']:.1f} s"])
    return table(["", "", "images per second"], rows)


def machine() -> str:
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
    )
    compiler = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, g++ {compiler}"
    return f"{model}, {os.cpu_count()} cores, two threads, {platform.system()}; {versions}"


def page(m: Measured, date: str) -> str:
    imports = f"{min(m.import_seconds):.2f} to {max(m.import_seconds):.2f}"
    return f"""Written by `python -m benchmarks` on {date}: {machine()}. Medians, with the range of the middle
half of the rounds; all in one run, side by side. Ratios carry further than milliseconds: the machine is shared.

## A step: fuse, sample and contrast, forward and backward

{QUERIES} queries, {CLASSES} classes, embeddings of {WIDTH} numbers, {NEGATIVES} negatives per anchor; every pixel is
an anchor. "dense" is the obvious implementation (benchmarks/dense.py: anchors x candidates matrices and Gumbel top-k,
image by image). "dense-compiled" is the same under torch.compile. "metric-learning" is SupConLoss of
pytorch-metric-learning, which samples nothing. The scores carry no gradient, as in training. Extra memory is the peak
of a step above its inputs, in a process of its own.

{steps(m)}

{targets(m)}

## Each operator

The least that an operator has to do (benchmarks/work.py): bytes of rows read in random order, bytes read or written in
order, and multiply-add instructions of 64 bytes. "Least ms" is the longest of the three at this machine's peaks,
measured in the same run. Numbers drawn, exponentials, comparisons and tables to build come on top, so the least cannot
be reached.

{operators(m)}

The peaks on two threads (benchmarks/peaks.cpp), and {m.peaks["multiply-adds"]:.1f} · 10^9 multiply-adds a second:

{peaks(m)}

## The data path, on one thread

Images of 1024 x 2048 pixels with 20 instances, in Cityscapes' files (benchmarks/bench_data.py). "views": both views of
a 512 x 1024 crop and its masks. They come from the files, from decoded files (`data.decoded`), or with everything in
memory; torchvision's classes are timed with everything in memory. "COCO evaluation" (100 detections per image) is
pycocotools' own code in both rows. "Cityscapes evaluation" is the official code, on predictions in memory and on the
files that it expects. "matching": the Hungarian matching of 100 queries in a supervised step with the paper's decoder
on a small backbone.

{data_path(m)}

## Building and importing

The first use compiled the operators in {m.build_seconds:.0f} s; after that, `import torch, sskd_fast.ops` took
{imports} s."""
