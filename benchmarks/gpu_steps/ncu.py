"""Hardware counters of every kernel at the published size, by Nsight Compute with unlocked clocks."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from benchmarks.gpu_steps.record import ROOT, Record
from benchmarks.gpu_steps.tools import side_by_side, small_step, tool

_LIMIT = 42.0
# Name on the page -> counter of Nsight Compute.
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "dram %": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "L2 %": "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "SM %": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "occupancy %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
    "dram bytes": "dram__bytes.sum",
    "barrier stall": "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    "memory stall": "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "registers": "launch__registers_per_thread",
}
_US = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3}
_BYTES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def measure(record: Record) -> None:
    """Records a row for each of our kernels, for both backends."""
    profiler = tool("ncu")
    if profiler is None or record.dry:
        record.put(not_run="there is no GPU" if record.dry else "ncu was not found; it comes with Nsight Compute")
        if not record.dry:
            raise RuntimeError(record.found["not_run"])
        return
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw", "--print-units"]
    options += ["base", "--metrics", ",".join(COUNTERS.values())]
    commands = {b: [profiler, *options, *ours(b), *small_step(record, b, "8x703")] for b in record.backends}
    rows: list[dict[str, Any]] = []
    failures = []
    for backend, status, seconds, output in side_by_side(commands, _LIMIT, {}):
        found = kernel_rows(output)
        rows += [{"backend": backend, **row} for row in found]
        record.put(kernels=rows, **{f"{backend}_seconds": seconds})
        if status != 0 or not found:
            record.put(**{f"{backend}_said": output[-3000:]})
            failures.append(f"{backend}: ncu ended with {status} and {len(found)} kernels of ours")
    if failures:
        raise RuntimeError("; ".join(failures))


def ours(backend: str) -> list[str]:
    """Options that skip PyTorch's own kernels, of which there are hundreds."""
    if backend == "cuda":
        return ["--kernel-name-base", "demangled", "--kernel-name", "regex:sskd_fast"]
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "kernels").glob("*.py"))
    names = sorted({name for text in texts for name in re.findall(r"^def (\w+_kernel)\(", text, re.M)})
    return ["--kernel-name", f"regex:^({'|'.join(names)})"]


def kernel_rows(output: str) -> list[dict[str, Any]]:
    """The counters of our kernels from `ncu --csv --page raw`; the first run of a kernel counts."""
    lines = output.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        return []
    head, units, *rest = csv.reader(io.StringIO("\n".join(line for line in lines[begin:] if line.startswith('"'))))
    unit_of = dict(zip(head, units, strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for values in rest:
        cells = dict(zip(head, values, strict=False))
        kernel = cells.get("Kernel Name", "")
        if not kernel or kernel in rows:
            continue
        row = {name: _number(cells.get(counter, ""), unit_of.get(counter, "")) for name, counter in COUNTERS.items()}
        rows[kernel] = {"kernel": kernel.removeprefix("void ")[:100], **row}
    return list(rows.values())


def _number(text: str, unit: str) -> float | None:
    """A counter's value, in microseconds or bytes if its unit is a time or a size; None if it is missing."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return float(f"{value * _US.get(unit, 1.0) * _BYTES.get(unit, 1.0):.4g}")
