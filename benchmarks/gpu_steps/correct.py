"""The tests of the operators on a GPU, side by side: tests/gpu_*.py, the long ones too."""

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
# A few of every kind, where the interpreter runs them.
_DRY = "nothing_in or uniform or race_completes"
_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_SUMMARY = re.compile(r"^(?:FAILED|ERROR|SKIPPED) .*")


def command(record: Record) -> list[str]:
    """The call of pytest: without a plugin that is missing, and with nothing of tests/conftest.py's data."""
    # A step in a graph first, the fine map last: in the order of what must not be missed.
    files = sorted((str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("gpu_*.py")), reverse=True)
    workers = ["-n", str(_SIDE_BY_SIDE)] if importlib.util.find_spec("xdist") is not None and not record.dry else []
    chosen = ["-k", _DRY] if record.dry else ["-m", "slow or not slow"]
    return [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *workers, *chosen, *files]


def measure(record: Record) -> None:
    """Counts of outcomes so far, and of every test that did not pass the reason."""
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
                if outcome[1] in ("FAILED", "ERROR"):  # its reason follows in the summary, if that is reached
                    summaries.append(line.strip()[:400])
            if time.monotonic() > written + 1:
                record.put(outcomes=outcomes, summaries=summaries[-60:])
                written = time.monotonic()
    record.put(outcomes=outcomes, summaries=summaries[-60:], last=last)
    if process.returncode != 0:
        raise RuntimeError(f"pytest ended with {process.returncode}: {last}")
