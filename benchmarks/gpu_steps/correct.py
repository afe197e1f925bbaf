"""The tests of the operators on a GPU, in parallel: tests/gpu_*.py, slow ones included."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections import Counter

from benchmarks.gpu_steps.record import ROOT, Record

_SIDE_BY_SIDE = 8
# A few tests of every kind, for the interpreter.
_DRY = "nothing_in or uniform or race_completes"
_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_SUMMARY = re.compile(r"^(?:FAILED|ERROR|SKIPPED) .*")


def command(record: Record) -> list[str]:
    """The call of pytest, without missing plugins and without the data of tests/conftest.py."""
    # In order of importance: a step in a graph first, the fine map last.
    files = sorted((str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("gpu_*.py")), reverse=True)
    workers = ["-n", str(_SIDE_BY_SIDE)] if importlib.util.find_spec("xdist") is not None and not record.dry else []
    chosen = ["-k", _DRY] if record.dry else ["-m", "slow or not slow"]
    return [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *workers, *chosen, *files]


def measure(record: Record) -> None:
    """Records the counts of outcomes so far, and the reason of every test that did not pass."""
    outcomes: Counter[str] = Counter()
    summaries: list[str] = []
    last = ""
    environment = {**os.environ, "COLUMNS": "200", **({"TRITON_INTERPRET": "1"} if record.dry else {})}
    with subprocess.Popen(
        command(record), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        written = time.monotonic()
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
            if _SUMMARY.match(line):
                summaries.append(line.strip()[:400])
            elif (outcome := _OUTCOME.search(line)) is not None and "::" in line:
                outcomes[outcome[1].lower()] += 1
                if outcome[1] in ("FAILED", "ERROR"):  # the summary gives the reason, if pytest gets there
                    summaries.append(line.strip()[:400])
            if time.monotonic() > written + 1:
                record.put(outcomes=outcomes, summaries=summaries[-60:])
                written = time.monotonic()
    record.put(outcomes=outcomes, summaries=summaries[-60:], last=last)
    if process.returncode != 0:
        raise RuntimeError(f"pytest ended with {process.returncode}: {last}")
