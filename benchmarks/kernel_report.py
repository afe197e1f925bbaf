"""`python -m benchmarks.kernel_report [--json FILE] [--page FILE]`: resources of the GPU kernels -> docs/gpu.md.

No GPU is needed. Every source in SOURCES gives the binaries of one backend, or reports that its compiler is missing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import cuda_binaries
from benchmarks.cases import CLASSES, NEGATIVES, QUERIES, TEMPERATURE, WIDTH
from benchmarks.kernel_binaries import ARCHS, Binary, compiled
from benchmarks.marked import add_page_option, write_part
from sskd_fast import kernels
from sskd_fast._backend_costs import OPERATORS
from sskd_fast.ops import _library

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python -m benchmarks.kernel_report"
MODULES = ("_rows", "_parts", "_envelope", "proposals", "_compressed", *OPERATORS)  # of kernels/


def triton_launches(
    dtype: torch.dtype = torch.float32, size: int = 64, negatives: int = NEGATIVES
) -> list[Callable[[], object]]:
    """Calls that launch every kernel at the published sizes of a row, with `size` anchors and candidates.

    The tables of negative sampling are launched once more, for weighted candidates of the same group, and the backward
    pass of the expected form once more as training does it, without gradients of the scores.

    dtype: of the embeddings; everything else has their compute dtype.
    """
    compute = torch.promote_types(dtype, torch.float32)
    zeros = functools.partial(torch.zeros, dtype=compute)
    masks, classes = zeros(1, QUERIES, 8, 8), zeros(1, QUERIES, CLASSES + 1)
    scores = torch.nn.functional.normalize(torch.ones(size, QUERIES + CLASSES + 1, dtype=compute), dim=1)
    rows = torch.zeros(size, WIDTH, dtype=dtype)
    group, seed = torch.zeros(size, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    temperature = torch.tensor([TEMPERATURE], dtype=torch.float64)
    drawn = torch.zeros(size, negatives, dtype=torch.int32)
    losses, share, pulled = zeros(size), zeros(size, negatives), zeros(size, WIDTH)
    details = scores, scores, None, None, None, False
    everything = group[:1].expand(size)
    sampled = scores, everything - 1, scores, None, everything, False  # scope "all"
    by_groups = scores, group, scores, torch.ones(size, dtype=torch.float64), group, True  # scope "same", weighted

    def run(operator: str, *arguments: object) -> Callable[[], object]:
        return lambda: _library.implementation("triton", operator)(*arguments)

    def grad(side: int) -> Tensor:
        return zeros(1, side * side, QUERIES + CLASSES + 1)

    return [
        run("score_fusion", masks, classes, 8, 8, 0),
        run("score_fusion_backward", grad(8), masks, classes, 8, 8, 0),
        run("score_fusion_backward", grad(4), masks, classes, 4, 4, 0),
        run("negative_sampling", *sampled, negatives, seed),
        run("hardest_negatives", rows.to(compute), rows.to(compute), drawn, negatives),
        run("pixel_contrast", rows, rows, rows, drawn, temperature, None, True, True),
        run(
            "pixel_contrast_backward", losses, rows, rows, rows, drawn, share, losses, pulled, temperature,
            True, True, True,
        ),
        run("expected_pixel_contrast", rows, rows, rows, *details, negatives, temperature, True),
        run(
            "expected_pixel_contrast_backward", losses, rows, rows, rows, *details, losses, losses, losses, temperature,
            True, True,
        ),
        run("negative_sampling", *by_groups, negatives, seed),
        run(
            "expected_pixel_contrast_backward", losses, rows, rows, rows, *details, losses, losses, losses, temperature,
            False, False,
        ),
    ]  # fmt: skip


def triton_binaries(arch: str, dtype: torch.dtype = torch.float32) -> list[Binary]:
    """Every Triton kernel for an architecture, by name; for several versions of one, the largest of each number."""
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in MODULES]
    found: dict[str, Binary] = {}
    for binary in compiled(arch, triton_launches(dtype), modules):
        found[binary.kernel] = binary.most(found.get(binary.kernel, binary))
    return [found[name] for name in sorted(found, key=lambda name: (_operator(name), name))]


def cuda_kernels(arch: str) -> list[Binary]:
    """Every CUDA kernel for an NVIDIA architecture; empty for others. Raises RuntimeError if a tool is missing."""
    reason = cuda_binaries.why_unavailable()
    if reason is not None:
        raise RuntimeError(reason)
    known = arch in cuda_binaries.CAPABILITIES
    return [Binary(**row) for row in cuda_binaries.rows(arch)] if known else []


# Backend -> function that compiles the binaries of an architecture. Raises ImportError or RuntimeError if it cannot.
SOURCES: dict[str, Callable[[str], list[Binary]]] = {"triton": triton_binaries, "cuda": cuda_kernels}


def _operator(kernel: str) -> int:
    """The index of a kernel's operator; the last match counts: "expected_pixel_contrast" contains "pixel_contrast"."""
    return max(i for i, name in enumerate(OPERATORS) if name in kernel)


def collect() -> tuple[list[Binary], dict[str, str]]:
    """The binaries of every source, and the reason if a source has none; compiles in parallel on all cores."""
    found: list[Binary] = []
    missing: dict[str, str] = {}
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=fresh) as pool:
        compiling = {backend: [pool.submit(source, arch) for arch in ARCHS] for backend, source in SOURCES.items()}
        for backend, results in compiling.items():
            try:
                found += [binary for result in results for binary in result.result()]
            except (ImportError, RuntimeError) as error:
                missing[backend] = str(error)
    return found, missing


def table(binaries: list[Binary]) -> str:
    """The binaries as a table in Markdown."""
    head = [
        "kernel",
        "backend",
        "arch",
        "registers",
        "spilled bytes",
        "shared bytes",
        "occupancy",
        "load",
        "tensor cores",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for b in binaries:
        cells = (
            b.kernel, b.backend, b.arch, b.registers, b.spill_bytes, b.shared_bytes, f"{100 * b.occupancy:.0f} %",
            f"{8 * b.load_bytes} bit", "yes" if b.tensor_core else "no",
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def versions() -> str:
    """The compilers of the kernels."""
    import triton

    return f"torch {torch.__version__}, Triton {triton.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_report", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the list of kernels here")
    add_page_option(parser, COMMAND, ROOT / "docs" / "gpu.md")
    arguments = parser.parse_args()
    binaries, missing = collect()
    for backend, reason in missing.items():
        print(f"no {backend} kernels: {reason}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([b.record() for b in binaries], indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.json}")
    write_part(arguments.page, COMMAND, f"Compiled with {versions()}.\n\n{table(binaries)}")
    print(f"wrote {arguments.page}")


if __name__ == "__main__":
    main()
