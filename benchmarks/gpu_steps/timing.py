"""Timing of a call: by events on a GPU, by the clock on a CPU; its CUDA graph; its kernels by the profiler."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], object]
# Seconds to repeat a call for, fewest and most repetitions, and seconds from which a single call is enough.
_BUDGET, _LEAST, _MOST, _LONG = 0.1, 3, 50, 1.0


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_once(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call, including the device's work."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def milliseconds(call: Call, device: torch.device) -> dict[str, float]:
    """Median, fastest and slowest of repeated calls, and their number: a single one if a call takes a second.

    A call before them warms a GPU up, and one more tells how long a call takes.
    """
    if device.type == "cuda":
        call()
    once = seconds_once(call, device)
    repeats = min(_MOST, max(_LEAST, int(_BUDGET / max(once, 1e-6))))
    times = [once]
    if once < _LONG:
        times = [_between_events(call) if device.type == "cuda" else seconds_once(call, device) for _ in range(repeats)]
    found = {"ms": statistics.median(times), "fastest": min(times), "slowest": max(times)}
    return {name: _rounded(1e3 * value) for name, value in found.items()} | {"repeats": len(times)}


def _between_events(call: Call) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def captured(call: Call) -> torch.cuda.CUDAGraph:
    """A CUDA graph of the call, after a warm-up on its own stream. Raises whatever the capture raises."""
    torch.cuda.empty_cache()  # a stream cannot reuse the cached memory of another
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        torch.cuda.set_stream(before)  # a failed capture leaves its own stream as the current one
    return graph


def kernels(call: Call, device: torch.device, named: int = 3) -> dict[str, Any]:
    """Profile one call: launches, total microseconds, and the kernels that take longest, by name.

    Without a GPU, PyTorch's operators take the place of kernels.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        call()
        synchronize(device)
    spent: dict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    for event in profiled.events() or ():
        if on_gpu == (event.device_type.name == "CUDA"):
            spent[event.name] += event.device_time_total if on_gpu else event.self_cpu_time_total
            launches[event.name] += 1
    first = sorted(spent, key=lambda name: -spent[name])[:named]
    longest = [{"name": n[:60], "us": _rounded(spent[n]), "launches": launches[n]} for n in first]
    return {"launches": sum(launches.values()), "us": _rounded(sum(spent.values())), "longest": longest}


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Peak memory of a call in bytes, above that before it; None without a GPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _rounded(value: float) -> float:
    """Round to four digits: more would be noise."""
    return float(f"{value:.4g}")
