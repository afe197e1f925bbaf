"""Every launch configuration of the kernels, by the shapes they are launched with: one a kernel, no search at run time.

The bounds behind the numbers: a gather kernel should leave room for half of the threads of a multiprocessor (64
registers a thread), hold a row in 16-byte pieces, and have no more rows in flight than its registers hold. float64 is
there to check the other types by: its numbers take two registers each, so that gather kernels of it may take as many as
they need, and tiles are smaller. No kernel spills, be it compiled by the oldest supported Triton or by the newest one
(tests/test_triton_compile.py).
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


def _has_tensor_memory() -> bool:
    """Whether tensor cores sum in a memory of their own, of 512 columns: NVIDIA's Blackwell for data centres."""
    if _env.triton_interpreted():
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and 100 <= target.arch < 120


def _registers(count: int) -> dict[str, int]:
    """The option that keeps a kernel of NVIDIA's compiler at that many a thread; AMD's has none of that name."""
    return {} if _on_amd() else {"maxnreg": count}


def _half_of_the_threads(dtype: torch.dtype) -> dict[str, int]:
    return {} if dtype == torch.float64 else _registers(64)


def sampling_trials(width: int, dtype: torch.dtype) -> dict[str, int]:
    """One warp an anchor: every warp of a program computes words, levels and ranks of all trials over again, and waits
    for the others at each sum. It needs more registers, which leave room for a quarter of the threads: enough, since
    each warp has 2 KB of rows on their way."""
    return {"BLOCK_T": 16, "BLOCK_HELD": 64, "num_warps": _warps(1), **_registers(112)}


def sampling_race(num_negatives: int) -> dict[str, int]:
    """As few warps as hold the best in four numbers a thread, for the reason that trials have one."""
    slots = triton.next_power_of_2(num_negatives)
    warps = max(2, min(8, slots // 128))
    return {
        "BLOCK_Q": min(32, 8 * warps),
        "BLOCK_R": slots,
        "BLOCK_HELD": 16,
        "num_warps": _warps(warps),
        **_registers(112),
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
        **(_half_of_the_threads(dtype) if numbers <= 256 else {}),
    }


def rows_backward(width: int, dtype: torch.dtype) -> dict[str, int]:
    shape = _row_shape(width, dtype)
    block = max(1, min(16, 4096 // (shape["CHUNKS"] * shape["COLUMNS"])))
    return {**shape, "BLOCK_A": block, "num_warps": _warps(8), **_half_of_the_threads(dtype)}


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
    """BLOCK_G: numbers of a row whose gradients a program holds.

    Before Triton 3.8 the sums of float32 products take twice their size in tensor memory, so that 128 numbers of both
    gradients do not fit; with half of them two programs share a multiprocessor.
    """
    tile = {"BLOCK_I": 64, "BLOCK_J": 16, "BLOCK_W": 32, "BLOCK_G": 128}
    if dtype == torch.float64:
        tile |= {"BLOCK_I": 32, "BLOCK_G": 32}
    elif dtype == torch.float32 and _has_tensor_memory():
        tile |= {"BLOCK_G": 64}
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
        **(_half_of_the_threads(dtype) if block <= 128 else {}),
    }


def resize_backward() -> dict[str, int]:
    return {"BLOCK": 256, "num_warps": _warps(4)}
