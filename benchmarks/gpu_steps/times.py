"""Times of a step and of every operator: ours in Triton and in CUDA C++, the reference, and the dense baseline.

Measures eager calls between events, replays of a CUDA graph, kernels by the profiler, and memory. Also gives the time
relative to the roofline of benchmarks/cost_model.py, with the ceilings measured by the step `machine` in this call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import cost_model
from benchmarks.cases import CLASSES, DTYPES, NEGATIVES, QUERIES, WIDTH, Case
from benchmarks.contenders import step_of
from benchmarks.gpu_steps import machine
from benchmarks.gpu_steps.calls import cases_of, operator_calls
from benchmarks.gpu_steps.record import Record, reason
from benchmarks.gpu_steps.timing import captured, kernels, milliseconds, peak_bytes
from sskd_fast import _backend_costs

# The reference comes last: it takes longest, and cannot be captured in a graph, since it waits for the host.
OTHERS = ("dense", "dense-compiled", "reference")

# A longer call launches so many kernels that reading the profiler's events takes too long.
_TOO_MANY_MS = 1000.0


def measure(record: Record) -> None:
    """Records rows of `steps` and `operators`, each as soon as it is measured, the most important first."""
    ceilings = of_machine(record)
    record.put(ceilings=vars(ceilings))
    steps: list[dict[str, Any]] = []
    operators: list[dict[str, Any]] = []
    for backend in record.backends:
        for row in step_rows(record, backend):
            steps.append(row)
            record.put(steps=steps)
    for backend in record.backends:
        for name, case in cases_of(record).items():
            for dtype in DTYPES:
                operators += operator_rows(record, backend, name, case, dtype, ceilings)
                record.put(operators=operators)
    for contender in OTHERS:
        for row in step_rows(record, contender):
            steps.append(row)
            record.put(steps=steps)
    failed = [row for row in (*steps, *operators) if "failed" in row]
    if failed:
        raise RuntimeError(f"{len(failed)} rows failed, the first of them {failed[0]}")


def of_machine(record: Record) -> cost_model.Device:
    """The ceilings of the step `machine`; runs that step if it left none."""
    found = record.of_step("machine")
    if "float32_tflop_s" not in found:
        machine.measure(record)
        found = record.found
    rates = {name: 1e12 * found[f"{name}_tflop_s"]["median"] for name in ("float32", "tf32", "bf16")}
    bandwidth = 1e9 * found["copy_gb_s"]["median"]
    return cost_model.Device("measured", bandwidth, rates["float32"], rates["tf32"], rates["bf16"])


def step_rows(record: Record, contender: str) -> Iterator[dict[str, Any]]:
    """Fuse, sample and contrast, forward and backward: a row for each case and dtype, or the reason for none."""
    for name, case in cases_of(record).items():
        for dtype in DTYPES:
            row = {"contender": contender, "case": name, "dtype": dtype}
            try:
                step = step_of(contender, case, DTYPES[dtype], record.device.type)
                yield row | (
                    {"not_run": step}
                    if isinstance(step, str)
                    else timed(step, record.device, graph=contender != "reference")
                )
            except Exception as error:  # an error of one contender is a finding, and the others continue
                yield row | {"failed": reason(error)}


def operator_rows(
    record: Record, backend: str, name: str, case: Case, dtype: str, ceilings: cost_model.Device
) -> Iterator[dict[str, Any]]:
    """A row for each pass of each operator."""
    size = DTYPES[dtype].itemsize
    model = cost_model.of_case(case.pixels, QUERIES, CLASSES + 1, NEGATIVES, WIDTH, size)
    row = {"contender": backend, "case": name, "dtype": dtype}
    try:
        calls = operator_calls(case, DTYPES[dtype], record.device.type, backend)
    except Exception as error:
        yield row | {"failed": reason(error)}
        return
    for (operator, mode), call in calls.items():
        if backend in _backend_costs.BACKENDS and backend not in _backend_costs.backends_of(operator):
            continue  # another backend runs it
        row |= {"operator": operator, "mode": mode}
        try:
            found = timed(call, record.device, graph=mode == "forward")
        except Exception as error:
            yield row | {"failed": reason(error)}
            continue
        cost = model.get(operator, {}).get(mode)
        if cost is not None:
            found["of_roofline"] = float(f"{found['ms'] / (1e3 * cost.seconds(ceilings, size)):.4g}")
            found["bound"] = cost.bound(ceilings, size)
        yield row | found


def timed(call: Callable[[], object], device: torch.device, *, graph: bool) -> dict[str, Any]:
    """All measurements of a call.

    graph: True to also replay it from a CUDA graph. The backward pass alone cannot be captured, since it runs on the
    stream of its forward pass. A failed capture can leave the generators and the allocator in capture mode.
    """
    found: dict[str, Any] = milliseconds(call, device)
    if found["ms"] < _TOO_MANY_MS:
        found["kernels"] = kernels(call, device)
    found["peak_mb"] = None if (peak := peak_bytes(call, device)) is None else round(peak / 2**20, 1)
    if graph and device.type == "cuda":
        try:
            found["graph_ms"] = milliseconds(captured(call).replay, device)["ms"]
        except Exception as error:  # a call that waits for the host cannot be captured
            found["graph_failed"] = reason(error)
            torch.cuda.synchronize()
    return found
