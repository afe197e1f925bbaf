"""NVIDIA's tools that watch a process: where they lie, and a small step under several of them side by side."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_steps.record import ROOT, Record

# Beside the PATH; the newest of several comes first.
_PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda-*/bin")


def tool(name: str) -> str | None:
    """Path of a program, None if it is nowhere."""
    found = shutil.which(name)
    if found is not None:
        return found
    for place in _PLACES:
        for folder in sorted(Path("/").glob(place.lstrip("/")), reverse=True):
            if (folder / name).is_file():
                return str(folder / name)
    return None


def small_step(record: Record, backend: str, size: str) -> list[str]:
    """The command that the tools watch."""
    dry = ["--dry"] if record.dry else []
    return [sys.executable, "-m", "benchmarks.gpu_steps.small_step", backend, size, *dry]


def kill_tree(process: int) -> None:
    """Ends a process and all that it started, whatever sessions they are in: what is left would disturb the next."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        children = []
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)  # starts no more of them meanwhile
    for child in children:
        kill_tree(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def side_by_side(
    commands: Mapping[str, Sequence[str]], limit: float, environment: Mapping[str, str]
) -> Iterator[tuple[str, int | None, float, str]]:
    """Name, exit status (None if it was stopped at the limit), seconds and output of each command, as they end."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for name, command in commands.items():
            with (Path(folder) / name).open("w") as log:
                running[name] = subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
                )
        while running:
            spent = time.monotonic() - start
            for name, process in list(running.items()):
                late = spent > limit and process.poll() is None
                if late:
                    kill_tree(process.pid)
                    process.wait()
                if process.poll() is not None:
                    del running[name]
                    output = (Path(folder) / name).read_text(encoding="utf-8", errors="replace")
                    yield name, None if late else process.returncode, round(spent, 1), output
            time.sleep(0.05)
