"""Every launch configuration of the kernels, as a function of shapes: one for each kernel, no search at run time.

The bounds behind the numbers: a gather kernel should allow half occupancy of a multiprocessor, 64 registers per thread.
It should load a row in 16-byte pieces and have no more rows in flight than its registers hold. float64 exists to check
the other dtypes. Its numbers take two registers each, so its gather kernels may use as many registers as they need, and
its tiles are smaller. No kernel spills with the oldest supported Triton or with the newest
(tests/test_triton_compile.py).
"""

from __future__ import annotations

import torch
import triton
from triton.runtime import driver

from sskd_fast import _env

_LINE_BYTES = 128


def line_columns(dtype: torch.dtype) -> int:
    """Numbers of a row gathered at a time: one cache line."""
    return _LINE_BYTES // dtype.itemsize


def _on_amd() -> bool:
    """True if kernels are compiled for AMD GPUs; the interpreter has no target."""
    return not _env.triton_interpreted() and driver.active.get_current_target().backend == "hip"


def _warps(count: int) -> int:
    """The number of warps with as many threads as `count` warps of 32 lanes; AMD's warps have 64."""
    return max(1, count // 2) if _on_amd() else count


def _has_tensor_memory() -> bool:
    """True if tensor cores accumulate in tensor memory of 512 columns: NVIDIA's data-centre Blackwell."""
    if _env.triton_interpreted():
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and 100 <= target.arch < 120


def _registers(count: int) -> dict[str, int]:
    """The option that limits registers per thread with NVIDIA's compiler; AMD's has no option of that name."""
    return {} if _on_amd() else {"maxnreg": count}


def _half_of_the_threads(dtype: torch.dtype) -> dict[str, int]:
    return {} if dtype == torch.float64 else _registers(64)


def compressed_stride(width: int) -> int:
    """Bytes of a compressed row: its integers and three float32 numbers, in whole sectors of 32 bytes."""
    return triton.cdiv(width + 12, 32) * 32


def sampling_trials(width: int) -> dict[str, int]:
    """One warp for each anchor.

    With several warps, each would compute words, levels and ranks of all trials again, and wait for the others at each
    sum. A lane has one trial, and the warp 4 KB of compressed rows in flight, so quarter occupancy is enough. The
    tensor cores multiply a block of rows by PRODUCTS columns, the fewest that they take; two are in use.
    """
    return {
        "BLOCK_T": 32,
        "BLOCK_HELD": 64,
        "STRIDE": compressed_stride(width),
        "BLOCK_K": min(128, triton.next_power_of_2(compressed_stride(width))),
        "PRODUCTS": 16 if _on_amd() else 8,
        "num_warps": _warps(1),
        **_registers(112),
    }


def compression(dtype: torch.dtype) -> dict[str, int]:
    """Programs that bring rows to bytes: 16 bytes of a row a thread, in float64."""
    columns = line_columns(dtype)
    return {"ROWS": 512 // columns, "COLUMNS": columns, "num_warps": _warps(4)}


# The most programs of the race: about as many as a large GPU runs at once.
RACE_PROGRAMS = 2048


def sampling_race(num_negatives: int) -> dict[str, int]:
    """The fewest warps that hold the best arrivals in four numbers per thread, for the same reason as for trials."""
    slots = triton.next_power_of_2(num_negatives)
    warps = max(2, min(8, slots // 128))
    return {
        "BLOCK_Q": min(32, 8 * warps),
        "BLOCK_R": slots,
        "BLOCK_HELD": 16,
        "num_warps": _warps(warps),
        **_registers(128),
    }


def proposals_rows(dtype: torch.dtype) -> dict[str, int]:
    """Programs that sum rows in float64, 16 bytes of a row a thread.

    A loop over groups holds rows and sums at once. There are a few hundred programs at most, so quarter occupancy is
    enough.
    """
    columns = line_columns(dtype)
    registers = _registers(112 if dtype == torch.float64 else 96)
    return {"ROWS": 512 // columns, "COLUMNS": columns, "num_warps": _warps(4), **registers}


def proposals_slots() -> dict[str, int]:
    return {"BLOCK": 128, "num_warps": _warps(4), **_registers(64)}


def proposals_layout() -> dict[str, int]:
    return {"BLOCK": 128, "num_warps": _warps(4), **_registers(64)}


def _row_shape(width: int, dtype: torch.dtype, lines: int = 1) -> dict[str, int]:
    """A whole row in registers: CHUNKS times COLUMNS numbers, that is CHUNKS cache lines."""
    columns = lines * line_columns(dtype)
    return {"CHUNKS": triton.next_power_of_2(max(1, triton.cdiv(width, columns))), "COLUMNS": columns}


def gathered(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Programs that gather whole rows.

    Sixteen lanes share a row, so that row, sum and anchor take 8 registers each at 128 numbers. The lines of very wide
    rows are split among warps.
    """
    shape = _row_shape(width, dtype, lines=2)
    numbers = shape["CHUNKS"] * shape["COLUMNS"]
    return {
        **shape,
        "BLOCK_R": max(1, min(8, 8192 // numbers)),
        "num_warps": _warps(4),
        **(_half_of_the_threads(dtype) if numbers <= 256 else {}),
    }


def sorted_draws(draws: int, dtype: torch.dtype) -> int:
    """The draws that a program of `gathered` sorts at a time, eight a thread at most; 0 if it cannot."""
    size = triton.next_power_of_2(max(draws, 32))
    return size if dtype == torch.float32 and size <= 1024 else 0


def contrast(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Programs that gather whole rows for sums of rows: one warp, which computes what belongs to the anchor once.

    Eight lanes share a row, and the warp holds four. With 80 registers for a thread, three eighths of the threads fit
    on a multiprocessor, with 48 KB of float32 rows in flight. Rows of more than 128 numbers do not fit beside a sum.
    """
    shape = _row_shape(width, dtype)
    if shape["CHUNKS"] * shape["COLUMNS"] > 128:
        return gathered(width, dtype)
    return {
        **shape,
        "BLOCK_R": 8 if _on_amd() else 4,
        "num_warps": 1,
        **({} if dtype == torch.float64 else _registers(80)),
    }


def rows_backward(width: int, dtype: torch.dtype) -> dict[str, int]:
    shape = _row_shape(width, dtype)
    block = max(1, min(16, 4096 // (shape["CHUNKS"] * shape["COLUMNS"])))
    return {**shape, "BLOCK_A": block, "num_warps": _warps(8), **_half_of_the_threads(dtype)}


def panel(width: int) -> int:
    """Numbers of a row of float16 that are multiplied at a time: 128 bytes, less if that leaves out zeros."""
    return next(n for n in (64, 32, 16) if n == 16 or -(-width // n) * n - width < n // 2)


def _tensor_copies(dtype: torch.dtype) -> bool:
    """True if tiles are copied by the tensor memory accelerator: from Hopper on. The interpreter imitates it."""
    if dtype == torch.float64:
        return False
    if _env.triton_interpreted():
        return True
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def _precision(dtype: torch.dtype) -> str:
    """Of products of float32 numbers. AMD's matrix cores multiply float32 natively."""
    return "ieee" if dtype == torch.float64 or _on_amd() else "tf32x3"


def expected_forward(dtype: torch.dtype) -> dict[str, int | bool]:
    """Tiles of 128 x 128 pairs in eight warps, chosen by count for sm_90 (docs/gpu.md), not by time.

    A thread holds 64 weights and 64 products, so that one program fills the registers of a multiprocessor. Products and
    bytes per pair are then in balance; half of the tile would read half as much again per pair. Two stages of panels
    take 128 KB. Tensor memory holds both products twice, so that half of the tile fits. Without tensor copies, a thread
    holds addresses, too.
    """
    tile = {"BLOCK_I": 128, "BLOCK_J": 128}
    if dtype == torch.float64:
        tile = {"BLOCK_I": 64, "BLOCK_J": 32}
    elif not _tensor_copies(dtype):
        tile = {"BLOCK_I": 64, "BLOCK_J": 64}
    elif _has_tensor_memory():
        tile = {"BLOCK_I": 128, "BLOCK_J": 64}
    return {**tile, "TENSOR_COPIES": _tensor_copies(dtype), "num_warps": _warps(8), "num_stages": 2}


def expected_backward(dtype: torch.dtype, width: int, with_scores: bool, more: bool) -> dict[str, int | str | bool]:
    """The same tiles; BLOCK_G: numbers of a row whose gradients a program holds, for 128 of them 64 a thread.

    Rows of more than 128 numbers have half of the columns, and up to 256 gradients: a second program would compute the
    tiles again.

    Gradients of the scores take as many registers again, and float64 twice as many: their tiles are smaller. So are
    those of GPUs without tensor copies, which hold addresses, too. More for every column, a factor or a group, does not
    fit beside 128 of them, and tensor memory does not hold two tiles of 128 x 128 twice beside the gradients. There,
    half precision spills registers in two stages.
    """
    copies = _tensor_copies(dtype)
    tile = {"BLOCK_I": 128, "BLOCK_J": 128, "BLOCK_G": min(128, triton.next_power_of_2(width))}
    if dtype == torch.float64:
        tile |= {"BLOCK_I": 32, "BLOCK_J": 16, "BLOCK_G": 32}
    elif with_scores or _on_amd():
        tile |= {"BLOCK_I": 64, "BLOCK_J": 32 if copies or _on_amd() else 16}
    elif not copies:
        tile |= {"BLOCK_I": 64, "BLOCK_J": 32 if more else 64}
    elif more or _has_tensor_memory():
        tile |= {"BLOCK_J": 64}
    elif width > 128:
        tile |= {"BLOCK_J": 64, "BLOCK_G": 256}
    options = {"TENSOR_COPIES": copies, "PRECISION": _precision(dtype)}
    stages = 1 if _has_tensor_memory() and dtype.itemsize == 2 else 2
    return {**tile, **options, "num_warps": _warps(8), "num_stages": stages}


def fusion_forward(queries: int, classes: int, dtype: torch.dtype) -> dict[str, int]:
    """All queries of a block of pixels, one panel of classes."""
    block = max(16, triton.next_power_of_2(queries))
    return {
        "BLOCK_K": block,
        "BLOCK_N": 16,
        "BLOCK_C": 16 if classes <= 16 else 32,
        "num_warps": _warps(4 if block <= 128 else 8),
    }


def fusion_backward(queries: int, classes: int, dtype: torch.dtype) -> dict[str, int]:
    """All queries of a block of pixels, one class at a time."""
    block = max(16, triton.next_power_of_2(queries))
    return {
        "BLOCK_K": block,
        "BLOCK_N": 16,
        "num_warps": _warps(16),
        **(_half_of_the_threads(dtype) if block <= 128 else {}),
    }


def resize_backward() -> dict[str, int]:
    return {"BLOCK": 256, "num_warps": _warps(4)}
