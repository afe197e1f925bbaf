"""NVIDIA's sanitizers and profilers: their paths, and a small step under several of them in parallel."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_steps.record import ROOT, Record, said

# Searched after the PATH; the newest of several comes first.
_PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda-*/bin")

# Seconds that a killed process may take to end; a process that waits for a device can take long.
_ENDS_WITHIN = 5.0


def tool(name: str) -> str | None:
    """Path of a program that runs (prints its version), or None: a toolkit may ship a wrapper of a missing program."""
    on_path = shutil.which(name)
    candidates = [on_path] if on_path is not None else []
    for place in _PLACES:
        folders = Path("/").glob(place.lstrip("/"))
        newest_first = sorted(folders, key=lambda f: [int(n) for n in re.findall(r"\d+", str(f))], reverse=True)
        candidates += [str(folder / name) for folder in newest_first if (folder / name).is_file()]
    return next((path for path in candidates if said([path, "--version"])), None)


def small_step(record: Record, backend: str, size: str) -> list[str]:
    """The command to run under the tools."""
    dry = ["--dry"] if record.dry else []
    return [sys.executable, "-m", "benchmarks.gpu_steps.small_step", backend, size, *dry]


def kill_tree(process: int) -> None:
    """Kills a process and all its descendants, in whatever session, and waits until they have ended.

    Leftover processes would disturb the next measurement.
    """
    children: list[str] = []
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGSTOP)  # so that it starts no more meanwhile
        for thread in Path(f"/proc/{process}/task").iterdir():
            children += (thread / "children").read_text().split()
    for child in children:
        kill_tree(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + _ENDS_WITHIN
    while _runs(process) and time.monotonic() < deadline:
        time.sleep(0.005)


def _runs(process: int) -> bool:
    """True if a process exists and is not a zombie, which only waits for its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def side_by_side(
    commands: Mapping[str, Sequence[str]], limit: float, environment: Mapping[str, str]
) -> Iterator[tuple[str, int | None, float, str]]:
    """Run commands in parallel; yield name, exit status (None if stopped at the limit), seconds and output of each."""
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
