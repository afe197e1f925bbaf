"""Every launch configuration of the kernels, by the shapes they are launched with: one a kernel, no search at run time.

The bounds behind the numbers: a gather kernel should leave room for half of the threads of a multiprocessor (64
registers a thread), hold a row in 16-byte pieces, and have no more rows in flight than its registers hold.
"""

from __future__ import annotations

import torch
import triton

_LINE_BYTES = 128


def line_columns(dtype: torch.dtype) -> int:
    """Numbers of a row that are gathered at a time: a line of the cache."""
    return _LINE_BYTES // dtype.itemsize


def sampling_trials(width: int, dtype: torch.dtype) -> dict[str, int]:
    return {"BLOCK_T": 16, "BLOCK_HELD": 32, "num_warps": 4, "maxnreg": 64}


def sampling_race(num_negatives: int) -> dict[str, int]:
    return {"BLOCK_Q": 32, "BLOCK_R": triton.next_power_of_2(num_negatives), "BLOCK_HELD": 32, "num_warps": 8, "maxnreg": 64}
