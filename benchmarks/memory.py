"""Peak extra memory of one step: `python -m benchmarks.memory CONTENDER CASE DTYPE` prints bytes, or a reason."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

from benchmarks.cases import CASES, DTYPES
from benchmarks.contenders import step_of
from sskd_fast import ops


def resident(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(contender: str, case: str, dtype: str) -> int | str:
    """Peak resident memory of a step in bytes, above that of the process with the inputs before the step."""
    torch.set_num_threads(2)
    step = step_of(contender, CASES[case], DTYPES[dtype])
    if isinstance(step, str):
        return step
    step()  # loads libraries, starts threads, compiles
    gc.collect()
    ops.release_memory()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


if __name__ == "__main__":
    print(measure(*sys.argv[1:4]))
