"""`python -m benchmarks.gpu_call --out DIR [--only STEP ...] [--dry]`: measure and test on a GPU in ten minutes.

Every step runs in its own process with its own time limit, and writes DIR/STEP.json. If a step fails or is stopped, the
file has the findings so far and the reason. Nothing is raised, and no step blocks the next one. Then
`python -m benchmarks.gpu_page DIR` writes the findings into docs/gpu.md.

It runs in a checkout, which need not be installed, with torch, torchvision, triton, timm, numpy, scipy, pytest, pyyaml,
safetensors, tensorboard, tqdm and ninja. It needs no network; `--wheels FOLDER` installs the wheels of a folder.
`--dry` runs everything at a tiny size on a CPU, with Triton's kernels in the interpreter, and fails if a step fails.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_steps import STEPS, Step
from benchmarks.gpu_steps.record import ROOT, said, write_json
from benchmarks.gpu_steps.tools import kill_tree
from sskd_fast import _env

LARGEST_FILE = 200_000  # bytes
_LOG_END = 6_000  # characters kept of a step's output
_SOURCES = ("csrc", "kernels", "sskd_fast", "benchmarks", "tests")
# On a busy machine with two cores, a dry step takes longer than a step on a GPU.
_DRY_SECONDS = 300
_DRY = {"TRITON_INTERPRET": "1", "TORCH_COMPILE_DISABLE": "1", "PYTHONWARNINGS": "ignore"}


def source_digest() -> str:
    """A hash of all sources that run, which ties a result to a commit even if the files were copied without git."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in _SOURCES for p in (ROOT / folder).rglob("*")):
        if path.suffix in {".py", ".h", ".cu", ".cpp", ".yaml"}:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def place() -> dict[str, Any]:
    """The origin of every file: machine, versions of the software, and sources."""
    versions = {name: found for name in ("torch", "triton", "numpy") if (found := version(name))}
    gpu: dict[str, Any] = {}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        gpu = {"card": card.name, "capability": f"{card.major}.{card.minor}"}
        gpu["driver"] = said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()[:1]
    nvcc = _env.cuda_compilers()[1]
    return {
        **gpu, "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "python": platform.python_version(), **versions, "cuda": torch.version.cuda,
        "nvcc": said([str(nvcc[0]), "--version"]).splitlines()[-1:] if nvcc else [], "cores": os.cpu_count(),
        "sources": source_digest(), "commit": checked_out(),
    }  # fmt: skip


def checked_out() -> str:
    """The commit, marked if tracked files differ from it; "" without a git history."""
    return said(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])


def version(name: str) -> str:
    """The version that a package states, whatever the name of its distribution; "" if it is missing."""
    try:
        return str(importlib.import_module(name).__version__)
    except ImportError:
        return ""


def run_step(step: Step, out: Path, where: dict[str, Any], *, limit: float, dry: bool) -> str:
    """Runs a step and writes its file; returns its outcome: "passed", "failed" or "stopped at its limit"."""
    file = out / f"{step.name}.json"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        found, log = Path(name) / f"{step.name}.json", Path(name) / "log"
        command = [sys.executable, "-m", "benchmarks.gpu_steps", step.name, str(found), str(out), *["--dry"] * dry]
        with log.open("w") as printed:
            environment = {**os.environ, **(_DRY if dry else {})}
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT
            )
            try:
                status = "passed" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                kill_tree(process.pid)
                process.wait()
                status = "stopped at its limit"
        content = {
            "step": step.name,
            "status": status,
            "dry": dry,
            "seconds": round(time.monotonic() - start, 1),
            "limit": round(limit, 1),
            "place": where,
            "log_end": "" if status == "passed" else log.read_text(encoding="utf-8", errors="replace")[-_LOG_END:],
            "found": json.loads(found.read_text(encoding="utf-8")) if found.exists() else {},
        }
    write_json(file, fitting(content))
    return status


def fitting(content: dict[str, Any]) -> dict[str, Any]:
    """The content without its largest findings, so that the file is small enough; it names those left out."""
    while len(json.dumps(content)) > LARGEST_FILE - 20_000:  # the file itself has line breaks
        found = content["found"]
        largest = max(found, key=lambda name: len(json.dumps(found[name])))
        content = content | {
            "found": {name: value for name, value in found.items() if name != largest},
            "left_out": [*content.get("left_out", []), largest],
        }
    return content


def install_wheels(folder: Path, target: Path) -> None:
    """Puts the wheels of a folder on the path of every step. Raises CalledProcessError if pip refuses them."""
    wheels = sorted(str(path) for path in folder.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*command, *wheels], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps in turn and prints a line with the outcome of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_call", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--only", action="append", choices=[step.name for step in STEPS], help="one step; repeatable")
    parser.add_argument("--dry", action="store_true", help="run at a tiny size on a CPU")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--limit", type=float, default=580, help="seconds for all steps; later steps get the rest")
    options = parser.parse_args(argv)
    if not options.dry and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry tries everything at a tiny size on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    start, statuses, where = time.monotonic(), [], place()
    with tempfile.TemporaryDirectory() as target:
        if options.wheels is not None:
            install_wheels(options.wheels, Path(target))
        for step in STEPS:
            if options.only and step.name not in options.only:
                continue
            left = options.limit - (time.monotonic() - start)
            limit = _DRY_SECONDS if options.dry else max(1.0, min(step.seconds, left))
            statuses.append(run_step(step, options.out.resolve(), where, limit=limit, dry=options.dry))
            print(f"{time.monotonic() - start:6.1f} s  {step.name}: {statuses[-1]}", flush=True)
    return 1 if options.dry and set(statuses) != {"passed"} else 0


if __name__ == "__main__":
    sys.exit(main())
