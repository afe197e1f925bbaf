"""`python -m benchmarks.instruction_counts [--json FILE]`: instructions executed by the operators of both GPU backends.

It is a model, not a measurement; "auto" uses it until such a GPU has been measured. Every kernel is compiled for sm_90
as for users. The instructions of each loop are multiplied by its turns (instruction_work.py) and by the warps that run
it. Forward and backward are added, and the sum is divided by the anchors or pixels. The model assumes:

- every instruction costs the same, and memory costs nothing;
- both sides of every branch are executed, unless the declared work calls one rare;
- slow paths of divisions and roots are never taken;
- no trial is left for the exact race, whose blocks return at once and are not counted;
- PyTorch's own kernels (sums and padding) cost the same for both backends, and sorting by PyTorch as much as by CUB.
  So do the five kernels that build the tables of negative sampling: they read a row twice, and the trials of an anchor
  read 400 rows.

If a kernel no longer has the loops declared for it, the command fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import cuda_binaries
from benchmarks.cases import NEGATIVES, QUERIES, TEMPERATURE, WIDTH
from benchmarks.instruction_work import ANCHORS, DRAWS, MIXED, SCORES, Work, cuda_work, triton_work
from benchmarks.kernel_binaries import compiled_kernels, compiling_for, listing
from benchmarks.kernel_report import triton_launches, versions
from benchmarks.sass_loops import executed
from sskd_fast import _backend_costs, _native, kernels
from sskd_fast.ops import _library

ARCH = "sm_90"
# Indices into kernel_report's launches. Hardest negatives are launched with as many draws as counted, and the backward
# pass of the expected form without gradients of the scores.
_LAUNCHES = {"score_fusion": (0, 1), "negative_sampling": (3,), "pixel_contrast": (5, 6)}


def launches() -> dict[str, list[Callable[[], object]]]:
    """Operator -> calls that launch its Triton kernels for the counted case."""
    every = triton_launches()
    found = {operator: [every[place] for place in places] for operator, places in _LAUNCHES.items()}
    size = 64
    rows, scores, losses = torch.zeros(size, WIDTH), torch.zeros(size, SCORES), torch.zeros(size)
    temperature = torch.tensor([TEMPERATURE], dtype=torch.float64)
    details = scores, scores, None, None, None, False
    state = losses, losses, losses, temperature, True, False
    backward = _library.implementation("triton", "expected_pixel_contrast_backward")
    drawn = torch.zeros(size, DRAWS, dtype=torch.int32)
    hardest = _library.implementation("triton", "hardest_negatives")
    found["hardest_negatives"] = [lambda: hardest(rows, rows, drawn, NEGATIVES)]
    found["expected_pixel_contrast"] = [every[7], lambda: backward(losses, rows, rows, rows, *details, *state)]
    return found


def settings() -> dict[str, dict[str, Any]]:
    """Function of kernels/_tuning.py -> its launch configuration for the counted case."""
    tuning = importlib.import_module(f"{kernels.__name__}._tuning")
    dtype, padded = torch.float32, -(-SCORES // 8) * 8
    with compiling_for(ARCH):  # the functions ask for the target GPU
        return {
            "sampling_trials": tuning.sampling_trials(padded),
            "compression": tuning.compression(dtype),
            "gathered": tuning.gathered(WIDTH, dtype),
            "contrast": tuning.contrast(WIDTH, dtype),
            "rows_backward": tuning.rows_backward(WIDTH, dtype),
            "panels": {"BLOCK_W": tuning.panel(WIDTH), "BLOCK_S": tuning.panel(SCORES)},
            "expected_forward": tuning.expected_forward(dtype),
            "expected_backward": tuning.expected_backward(dtype, WIDTH, False, False),
            "fusion_forward": tuning.fusion_forward(QUERIES, MIXED, dtype),
            "fusion_backward": tuning.fusion_backward(QUERIES, MIXED, dtype),
        }


def triton_texts(calls: list[Callable[[], object]]) -> dict[str, list[str]]:
    """Name -> listings of the Triton kernels that calls launch."""
    modules = [
        importlib.import_module(f"{kernels.__name__}.{name}")
        for name in ("_rows", "_parts", "_compressed", *_backend_costs.OPERATORS)
    ]
    texts: dict[str, list[str]] = {}
    for kernel in compiled_kernels(ARCH, calls, modules):
        texts.setdefault(kernel.name, []).append(listing(kernel))
    return texts


def triton_counts() -> dict[str, float]:
    """Operator -> warp instructions per anchor or pixel. Raises ValueError if the loops are not those declared."""
    counts = {}
    calls = launches()
    for operator, work in triton_work(settings()).items():
        texts = triton_texts(calls[operator])
        counts[operator] = sum(count_of(item, text) for item in work for text in texts[item.kernel])
    return counts


def cuda_counts() -> dict[str, float]:
    """Operator -> warp instructions per anchor or pixel, for the CUDA kernels."""
    texts = cuda_binaries.listings(ARCH)
    return {operator: sum(count_of(x, texts[x.kernel]) for x in work) for operator, work in cuda_work().items()}


def count_of(work: Work, code: str) -> float:
    """Warp instructions of a kernel per anchor or pixel. Raises ValueError, naming it, if its loops differ."""
    try:
        return executed(code, work.turns) * work.warps / ANCHORS
    except ValueError as error:
        raise ValueError(f"{work.kernel}: {error} in benchmarks/instruction_work.py") from error


def source() -> str:
    """The command and the compilers of the kernels."""
    release = subprocess.run([*_native.nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    nvcc = release.split("release ")[-1].split(",")[0]
    return f"python -m benchmarks.instruction_counts: {ARCH}, {versions()}, nvcc {nvcc}"


def written(file: Path, counts: dict[str, dict[str, float]], made_by: str) -> None:
    """Replaces the counts in a file of costs. Raises ValueError if the result would be invalid."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["counted"] = {"source": made_by} | {
        operator: {backend: round(amount) for backend, amount in amounts.items()}
        for operator, amounts in counts.items()
    }
    problem = _backend_costs.problem_of(content)
    if problem is not None:
        raise ValueError(f"{file}: {problem}")
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instruction_counts", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to update, such as sskd_fast/backend_costs.json")
    options = parser.parse_args(arguments)
    reason = cuda_binaries.why_unavailable()
    if reason is not None:
        print(f"nothing can be counted: {reason}", file=sys.stderr)
        return 1
    by_backend = {"triton": triton_counts(), "cuda": cuda_counts()}
    counts = {
        operator: {backend: by_backend[backend][operator] for backend in _backend_costs.backends_of(operator)}
        for operator in _backend_costs.OPERATORS
    }
    print(f"{source()}\nwarp instructions per anchor or pixel, forward and backward:")
    for operator, amounts in counts.items():
        print(f"{operator:24}" + "".join(f"  {backend} {amount:9.0f}" for backend, amount in amounts.items()))
    if options.json is not None:
        written(options.json, counts, source())
        print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
