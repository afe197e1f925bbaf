"""Every launch configuration of the kernels, by the shapes they are launched with: one a kernel, no search at run time.

The bounds behind the numbers: a gather kernel should leave room for half of the threads of a multiprocessor (64
registers a thread), hold a row in 16-byte pieces, and have no more rows in flight than its registers hold.
"""

from __future__ import annotations

import torch
import triton

from sskd_fast import _env

_LINE_BYTES = 128


def line_columns(dtype: torch.dtype) -> int:
    """Numbers of a row that are gathered at a time: a line of the cache."""
    return _LINE_BYTES // dtype.itemsize


def sampling_trials(width: int, dtype: torch.dtype) -> dict[str, int]:
    return {"BLOCK_T": 16, "BLOCK_HELD": 32, "num_warps": 4, "maxnreg": 64}


def sampling_race(num_negatives: int) -> dict[str, int]:
    return {"BLOCK_Q": 32, "BLOCK_R": triton.next_power_of_2(num_negatives), "BLOCK_HELD": 32, "num_warps": 8, "maxnreg": 64}


def _row_shape(width: int, dtype: torch.dtype) -> dict[str, int]:
    """A whole row in registers: CHUNKS lines of COLUMNS numbers."""
    columns = line_columns(dtype)
    return {"CHUNKS": triton.next_power_of_2(max(1, triton.cdiv(width, columns))), "COLUMNS": columns}


def gathered(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Programs that gather whole rows: one row of 128 numbers a slot of eight lanes; wide rows share out their lines."""
    shape = _row_shape(width, dtype)
    warps = 4 if shape["CHUNKS"] * shape["COLUMNS"] <= 256 else 8
    return {**shape, "BLOCK_R": max(1, min(16, 8192 // (shape["CHUNKS"] * shape["COLUMNS"]))), "num_warps": warps}


def rows_backward(width: int, dtype: torch.dtype) -> dict[str, int]:
    shape = _row_shape(width, dtype)
    return {**shape, "BLOCK_A": max(1, min(16, 4096 // (shape["CHUNKS"] * shape["COLUMNS"]))), "num_warps": 4}


def _products(dtype: torch.dtype) -> dict[str, int | str | bool]:
    """How numbers are multiplied: PRECISION those of float32, FLOW_PRECISION gradients with embeddings as stored.

    Half precision fits into TF32 without loss, so that with such embeddings one TF32 product rounds the flow only,
    far below the rounding of the result. AMD's matrix cores multiply float32 as it is. The interpreter's products of
    bfloat16 are wrong, so it widens first.
    """
    exact = dtype == torch.float64 or torch.version.hip is not None
    half = dtype.itemsize == 2
    return {
        "PRECISION": "ieee" if exact else "tf32x3",
        "FLOW_PRECISION": "ieee" if exact else "tf32" if half else "tf32x3",
        "WIDEN": half and _env.triton_interpreted(),
    }


def expected_forward(dtype: torch.dtype) -> dict[str, int | str | bool]:
    return {**_products(dtype), "BLOCK_I": 64, "BLOCK_J": 32, "BLOCK_W": 128, "BLOCK_S": 128, "num_warps": 4, "num_stages": 1}


def expected_backward(dtype: torch.dtype) -> dict[str, int | str | bool]:
    return {**_products(dtype), "BLOCK_I": 64, "BLOCK_J": 32, "BLOCK_W": 128, "BLOCK_S": 128, "num_warps": 8, "num_stages": 1}


def _fusion(queries: int, classes: int) -> dict[str, int]:
    """All queries of a block of pixels; a panel of classes."""
    block = max(16, triton.next_power_of_2(queries))
    return {
        "BLOCK_K": block,
        "BLOCK_N": 32 if block <= 128 else 16,
        "BLOCK_C": 16 if classes <= 16 else 32,
        "num_warps": 4 if block <= 128 else 8,
    }


def fusion_forward(queries: int, classes: int) -> dict[str, int]:
    return _fusion(queries, classes)


def fusion_backward(queries: int, classes: int) -> dict[str, int]:
    """STEPS blocks of pixels a program: fewer parts of class gradients to add up."""
    return {**_fusion(queries, classes), "STEPS": 4}


def resize_backward() -> dict[str, int]:
    return {"BLOCK": 256, "num_warps": 4}
