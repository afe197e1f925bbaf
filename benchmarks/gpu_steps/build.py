"""Compile, in parallel, the native libraries, every timed Triton kernel, and the dense baseline."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cases import DTYPES
from benchmarks.contenders import step_of
from benchmarks.gpu_steps import small_step
from benchmarks.gpu_steps.calls import cases_of, expected_calls
from benchmarks.gpu_steps.record import ROOT, Record


def native(record: Record) -> None:
    """Build the C++ library, which has the schemas, and on a GPU the library of the CUDA kernels."""
    from sskd_fast import _native

    print(_native.load() if record.dry else _native.load_cuda())


def triton(record: Record) -> None:
    """Run a step and the expected form in every dtype, forward and backward, so that Triton compiles the kernels."""
    case = next(iter(cases_of(record).values()))
    for dtype in DTYPES.values():
        run(step_of("triton", case, dtype, record.device.type))
        for call in expected_calls(case, dtype, record.device.type, "triton").values():
            call()


def odd(record: Record) -> None:
    """Run the sanitizers' small step."""
    small_step.odd(small_step.ODD, record.device, "triton")


def dense(record: Record, case: str) -> None:
    """Compile the dense baseline with torch.compile, which caches the result."""
    for dtype in DTYPES.values():
        run(step_of("dense-compiled", cases_of(record)[case], dtype, record.device.type))


def run(step: object) -> None:
    """Runs a step, or prints the reason why there is none."""
    print(step() if callable(step) else step)


def parts(record: Record) -> list[str]:
    """The parts to compile in parallel."""
    # The sanitizers' step has its own dtypes and sizes; to compile it under them would use up their time.
    odd = [] if record.dry else ["odd"]
    return ["native", "triton", *odd, *(f"dense {case}" for case in cases_of(record))]


def measure(record: Record) -> None:
    """Records the seconds of each part, and the end of the output of a part that failed."""
    dry = ["--dry"] if record.dry else []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        running = {}
        for part in parts(record):
            log = (Path(name) / part).open("w")
            command = [sys.executable, "-m", "benchmarks.gpu_steps.build", *dry, part]
            running[part] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while running:
            for part in [part for part, process in running.items() if process.poll() is not None]:
                failed = running.pop(part).returncode != 0
                log_end = (Path(name) / part).read_text(encoding="utf-8", errors="replace")[-3000:]
                seconds = round(time.perf_counter() - start, 1)
                record.put(**{part: {"seconds": seconds, **({"failed": log_end} if failed else {})}})
            time.sleep(0.05)
    failures = [part for part, found in record.found.items() if "failed" in found]
    if failures:
        raise RuntimeError(f"{', '.join(failures)}: did not compile; see the record for the reason")


def main() -> None:
    """Compiles one part, in this process."""
    record, part = Record(Path("unused"), Path("unused"), dry="--dry" in sys.argv), sys.argv[-1]
    if part.startswith("dense "):
        dense(record, part.removeprefix("dense "))
    else:
        {"native": native, "triton": triton, "odd": odd}[part](record)


if __name__ == "__main__":
    main()
