"""`python -m benchmarks [--page FILE]`: all benchmarks, memory of a step, the machine's peaks -> docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cases import CASES, DTYPES
from benchmarks.contenders import CONTENDERS
from benchmarks.marked import add_page_option, write_part
from benchmarks.report import Measured, page

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python -m benchmarks"


def run(*command: str, **environment: str) -> str:
    """Standard output of a command run in the checkout; its stderr is passed on."""
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def build_and_import(folder: Path) -> tuple[float, list[float]]:
    """Seconds of the first build, into an empty cache, and of three imports after it."""
    build = "import time; from sskd_fast import _native; s = time.time(); _native.load(); print(time.time() - s)"
    first = float(run(sys.executable, "-c", build, SSKD_FAST_CACHE=str(folder / "cache")))
    imports = []
    for _ in range(3):
        start = time.perf_counter()
        run(sys.executable, "-c", "import torch, sskd_fast.ops")
        imports.append(time.perf_counter() - start)
    return first, imports


def memory() -> dict[tuple[str, str, str], int | str]:
    """Peak extra bytes of every step, or the reason why it was not measured."""
    result: dict[tuple[str, str, str], int | str] = {}
    for case in CASES:
        for dtype in DTYPES:
            for contender in CONTENDERS:
                print(f"memory of {contender} {case} {dtype}", file=sys.stderr)
                said = run(sys.executable, "-m", "benchmarks.memory", contender, case, dtype).strip().splitlines()[-1]
                result[contender, case, dtype] = int(said) if said.isdigit() else said
    return result


def peaks(folder: Path) -> dict[str, float]:
    """Rates by name, from peaks.cpp."""
    program = str(folder / "peaks")
    run("g++", "-O3", "-march=native", "-fopenmp", str(ROOT / "benchmarks" / "peaks.cpp"), "-o", program)
    return {name: float(rate) for name, rate in (line.split() for line in run(program).splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    default = ROOT / "docs" / "benchmarks.md"
    add_page_option(parser, COMMAND, default)
    output: Path = parser.parse_args().page
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_seconds, import_seconds = build_and_import(folder)
        rates = peaks(folder)
        records = folder / "records.json"
        subprocess.run(
            [sys.executable, "-m", "pytest", "benchmarks", "-q", f"--benchmark-json={records}"], cwd=ROOT, check=True
        )
        measured = Measured(
            json.loads(records.read_text())["benchmarks"], memory(), rates, build_seconds, import_seconds
        )
    content = page(measured, f"{datetime.date.today():%Y-%m-%d}")
    write_part(output, COMMAND, content)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
