"""Measured ceilings of the GPU, to compare the times of the other steps with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_steps.record import Record
from benchmarks.gpu_steps.timing import captured, milliseconds, seconds_once

_LAUNCHES = 1000


def measure(record: Record) -> None:
    """Records copy and L2 bandwidth, matrix products in the dtypes of the kernels, and empty launches."""
    device = record.device
    if not record.dry:
        gpu = torch.cuda.get_device_properties(device)
        record.put(multiprocessors=gpu.multi_processor_count, l2_bytes=gpu.L2_cache_size, memory=gpu.total_memory)
    record.put(copy_gb_s=copy_rate(device, 1 << (20 if record.dry else 30)))
    # A quarter of the cache for source and target each, so that both stay in it.
    record.put(l2_gb_s=copy_rate(device, 1 << 16 if record.dry else record.found["l2_bytes"] // 4, 20))
    size = 64 if record.dry else 8192
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        record.put(**{f"{name}_tflop_s": product_rate(device, dtype, size, tf32)})
    record.put(**launches(device, _LAUNCHES // 100 if record.dry else _LAUNCHES))


def copy_rate(device: torch.device, size: int, turns: int = 1) -> dict[str, Any]:
    """GB/s of copies of `size` bytes, counting read and written bytes."""
    source, target = (torch.randint(0, 255, (size,), dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        for _ in range(turns):
            target.copy_(source)

    # Several short copies in a graph, since a launch takes longer than a copy.
    call = captured(copy).replay if turns > 1 and device.type == "cuda" else copy
    return _rate(call, device, 2 * size * turns / 1e9)


def product_rate(device: torch.device, dtype: torch.dtype, size: int, tf32: bool) -> dict[str, Any]:
    """TFLOP/s of products of square matrices of random numbers, which draw more power than zeros."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return _rate(lambda: left @ right, device, 2 * size**3 / 1e12)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _rate(call: Callable[[], object], device: torch.device, amount: float) -> dict[str, Any]:
    times = milliseconds(call, device)
    best = {name: float(f"{1e3 * amount / times[name]:.4g}") for name in ("ms", "fastest", "slowest")}
    return {"median": best["ms"], "most": best["fastest"], "least": best["slowest"], "repeats": times["repeats"]}


def launches(device: torch.device, count: int) -> dict[str, float]:
    """Microseconds per launch of a nearly empty kernel: one after the other, and replayed from a graph."""
    one = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(count):
            one.add_(1)

    many()
    found = {"launch_us": 1e6 * min(seconds_once(many, device) for _ in range(3)) / count}
    if device.type == "cuda":
        graph = captured(many)
        graph.replay()
        found["launch_in_graph_us"] = 1e6 * min(seconds_once(graph.replay, device) for _ in range(3)) / count
    return {name: float(f"{value:.4g}") for name, value in found.items()}
