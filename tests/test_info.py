"""`python -m sskd_fast.info`, run as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import sskd_fast

ROOT = Path(__file__).resolve().parent.parent


def rows(**environment: str) -> dict[str, str]:
    """The output by the name at the start of each line."""
    command = [sys.executable, "-m", "sskd_fast.info"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ", 1) for line in done.stdout.splitlines() if line]
    return {name: text.strip() for name, text in lines}


def test_every_version_and_backend_is_listed() -> None:
    found = rows()
    assert found["sskd_fast"] == sskd_fast.__version__
    assert found["torch"].startswith(torch.__version__)
    assert {"python", "triton", "C++ compiler", "nvcc", "GPU", "driver", "cache"} <= set(found)
    assert found["backend reference"] == "runs on tensors on any device"
    assert found["backend cpu"] == "runs on tensors on cpu"
    for name in ("backend triton", "backend cuda"):
        assert torch.cuda.is_available() or found[name].startswith("does not run: ")


def test_without_programs_the_reasons_say_so(tmp_path: Path) -> None:
    found = rows(PATH=str(tmp_path), SSKD_FAST_CACHE=str(tmp_path), CXX="", CUDA_HOME=str(tmp_path))
    assert found["C++ compiler"] == "not found (looked for g++ and c++)"
    assert found["nvcc"] == f"not found (looked for CUDA_HOME={tmp_path})"
    assert found["backend reference"] == "runs on tensors on any device"
    assert found["backend cpu"].startswith("does not run: no C++ compiler was found")
    assert found["backend cuda"].startswith("does not run: ")
