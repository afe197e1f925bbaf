"""Every launch configuration of the kernels, by the shapes they are launched with: one a kernel, no search at run time.

The bounds behind the numbers: a gather kernel should leave room for half of the threads of a multiprocessor (64
registers a thread), hold a row in 16-byte pieces, and have no more rows in flight than its registers hold.
"""

from __future__ import annotations

import torch
import triton
from triton.runtime import driver

from sskd_fast import _env

_LINE_BYTES = 128


def line_columns(dtype: torch.dtype) -> int:
    """Numbers of a row that are gathered at a time: a line of the cache."""
    return _LINE_BYTES // dtype.itemsize


def _on_amd() -> bool:
    """Whether kernels are compiled for AMD's GPUs; the interpreter has no target."""
    return not _env.triton_interpreted() and driver.active.get_current_target().backend == "hip"


def _warps(count: int) -> int:
    """The number of warps that hold the threads of `count` warps of 32 lanes; AMD's have 64."""
    return max(1, count // 2) if _on_amd() else count


def _half_of_the_threads() -> dict[str, int]:
    """The option that keeps a kernel of NVIDIA's compiler at 64 registers; AMD's has none of that name."""
    return {} if _on_amd() else {"maxnreg": 64}


def sampling_trials(width: int, dtype: torch.dtype) -> dict[str, int]:
    return {"BLOCK_T": 16, "BLOCK_HELD": 64, "num_warps": _warps(4), **_half_of_the_threads()}


def sampling_race(num_negatives: int) -> dict[str, int]:
    return {
        "BLOCK_Q": 32,
        "BLOCK_R": triton.next_power_of_2(num_negatives),
        "BLOCK_HELD": 16,
        "num_warps": _warps(8),
        **_half_of_the_threads(),
    }


def _row_shape(width: int, dtype: torch.dtype, lines: int = 1) -> dict[str, int]:
    """A whole row in registers: CHUNKS times COLUMNS numbers, which are that many lines of the cache."""
    columns = lines * line_columns(dtype)
    return {"CHUNKS": triton.next_power_of_2(max(1, triton.cdiv(width, columns))), "COLUMNS": columns}


def gathered(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Programs that gather whole rows: sixteen lanes a row, so that row, sum and anchor take 8 registers each at 128
    numbers; very wide rows share out their lines among the warps."""
    shape = _row_shape(width, dtype, lines=2)
    numbers = shape["CHUNKS"] * shape["COLUMNS"]
    return {
        **shape,
        "BLOCK_R": max(1, min(8, 8192 // numbers)),
        "num_warps": _warps(4),
        **(_half_of_the_threads() if numbers <= 256 else {}),
    }


def rows_backward(width: int, dtype: torch.dtype) -> dict[str, int]:
    shape = _row_shape(width, dtype)
    block = max(1, min(16, 4096 // (shape["CHUNKS"] * shape["COLUMNS"])))
    return {**shape, "BLOCK_A": block, "num_warps": _warps(8), **_half_of_the_threads()}


def _products(dtype: torch.dtype) -> dict[str, int | str | bool]:
    """How numbers are multiplied: PRECISION those of float32, FLOW_PRECISION gradients with embeddings as stored.

    Half precision fits into TF32 without loss, so that with such embeddings one TF32 product rounds the flow only,
    far below the rounding of the result. AMD's matrix cores multiply float32 as it is. The interpreter's products of
    bfloat16 are wrong, so it widens first.
    """
    exact = dtype == torch.float64 or _on_amd()
    half = dtype.itemsize == 2
    return {
        "PRECISION": "ieee" if exact else "tf32x3",
        "FLOW_PRECISION": "ieee" if exact else "tf32" if half else "tf32x3",
        "WIDEN": half and _env.triton_interpreted(),
    }


def expected_forward(dtype: torch.dtype) -> dict[str, int | str | bool]:
    tile = {"BLOCK_I": 64, "BLOCK_J": 32, "BLOCK_W": 32}
    return {**_products(dtype), **tile, "num_warps": _warps(8), "num_stages": 2}


def expected_backward(dtype: torch.dtype) -> dict[str, int | str | bool]:
    """BLOCK_G: numbers of a row whose gradients a program holds."""
    tile = {"BLOCK_I": 64, "BLOCK_J": 16, "BLOCK_W": 32, "BLOCK_G": 128}
    return {**_products(dtype), **tile, "num_warps": _warps(8), "num_stages": 1}


def fusion_forward(queries: int, classes: int, dtype: torch.dtype) -> dict[str, int]:
    """All queries of a block of pixels; a panel of classes."""
    block = max(16, triton.next_power_of_2(queries))
    return {
        "BLOCK_K": block,
        "BLOCK_N": 16,
        "BLOCK_C": 16 if classes <= 16 else 32,
        "num_warps": _warps(4 if block <= 128 else 8),
    }


def fusion_backward(queries: int, classes: int, dtype: torch.dtype) -> dict[str, int]:
    """All queries of a block of pixels, a class at a time."""
    block = max(16, triton.next_power_of_2(queries))
    return {
        "BLOCK_K": block,
        "BLOCK_N": 16,
        "num_warps": _warps(16),
        **(_half_of_the_threads() if block <= 128 else {}),
    }


def resize_backward() -> dict[str, int]:
    return {"BLOCK": 256, "num_warps": _warps(4)}
