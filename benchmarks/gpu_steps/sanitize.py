"""compute-sanitizer on every operator of both backends: memory, races in shared memory, and barriers.

PyTorch's caching allocator is off here. It hands out parts of large blocks, in which an access past the end of a tensor
would still be in allocated memory.
"""

from __future__ import annotations

import re
from typing import Any

from benchmarks.gpu_steps.record import Record
from benchmarks.gpu_steps.tools import side_by_side, small_step, tool

CHECKS = ("memcheck", "racecheck", "synccheck")
# Seconds: less than the step's, so that the findings so far are written; one check alone in a dry call.
_LIMIT, _DRY_LIMIT = 62.0, 290.0
_FOUND_ERRORS = 99
_PREFIX = re.compile(r"^=+ ?", re.M)


def measure(record: Record) -> None:
    """Records a row for each check of each backend: the tool's result, and the first lines of its report."""
    sanitizer = tool("compute-sanitizer")
    commands = {}
    for backend in record.backends:
        for check in CHECKS:
            watched = small_step(record, backend, "odd")
            options = ["--tool", check, "--error-exitcode", str(_FOUND_ERRORS), "--print-limit", "20"]
            # API calls that fail harmlessly are not ours: PyTorch and Triton ask the driver for optional features.
            options += ["--report-api-errors", "no"] if check == "memcheck" else []
            commands[f"{check} {backend}"] = [sanitizer, *options, *watched] if sanitizer else watched
    if sanitizer is None:
        record.put(not_run="compute-sanitizer was not found; it comes with the CUDA toolkit")
        if not record.dry:
            raise RuntimeError(record.found["not_run"])
        commands = {"no check triton": small_step(record, "triton", "odd")}
    rows: list[dict[str, Any]] = []
    limit = _DRY_LIMIT if record.dry else _LIMIT
    for name, status, seconds, output in side_by_side(commands, limit, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}):
        rows.append({"check": name, "outcome": outcome(status, output), "seconds": seconds, **details(status, output)})
        record.put(checks=rows)
    wrong = [row["check"] for row in rows if row["outcome"] != "clean"]
    if wrong:
        raise RuntimeError(f"{', '.join(wrong)}: not clean; see the record for the reason")


def outcome(status: int | None, output: str) -> str:
    """The outcome of a check: "clean" only if the program finished and nothing was found."""
    if status is None:
        return "stopped at the limit"
    if status == _FOUND_ERRORS:
        return "errors found"
    return "clean" if status == 0 and ": ran" in output else f"ended with {status}"


def details(status: int | None, output: str) -> dict[str, Any]:
    """The tool's summary and, if the check is not clean, the start of its first report or the program's exit."""
    summary = re.findall(r"^=+ (.*SUMMARY: .*)$", output, re.M)
    if status == 0:
        return {"summary": summary}
    reports = [line for line in output.splitlines() if line.startswith("=========")]
    said = _PREFIX.sub("", "\n".join(reports[:60])) if len(reports) > 2 else output[-3000:]
    return {"summary": summary, "said": said[:6000]}
