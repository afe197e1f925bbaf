"""The steps of `python -m benchmarks.gpu_call`: each is a module with `measure(record)`, run in its own process.

A step writes each finding into its record at once, so a process that is killed leaves its earlier findings.
With `record.dry` it does the same at a tiny size on the CPU, with Triton's kernels in the interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A step. name: of its module and its JSON file; seconds: its limit; shows: its purpose, a line of the page."""

    name: str
    seconds: int
    shows: str


STEPS = (
    Step("machine", 30, "ceilings: copy and L2 bandwidth, matrix products, empty launches"),
    Step("build", 70, "nvcc, Triton and the dense baseline's compiler, side by side"),
    Step("correct", 150, "every operator against the float64 reference, graph capture, equal bits, the fine map"),
    Step("sanitize", 70, "memcheck, racecheck and synccheck of both backends"),
    Step("times", 110, "every operator and a step, beside the reference and the dense baseline"),
    Step("training", 70, "a step of the paper's student in bfloat16, with and without the contrastive loss"),
    Step("ncu", 45, "what the hardware counters say of every kernel"),
)
