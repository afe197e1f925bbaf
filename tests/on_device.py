"""The device of the tests in tests/gpu_*.py: a GPU if there is one, else Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("triton", "cuda") if DEVICE == "cuda" else ("triton",)


def why_not_interpreted() -> str | None:
    """The reason why Triton's interpreter does not run here, None if it does."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: its kernels are not run"
    # Its scalars are arrays of one element, and up to 3.6 it takes int() of them.
    if Version(version("triton")) < Version("3.7") and Version(version("numpy")) >= Version("2.4"):
        return f"the interpreter of Triton {version('triton')} needs NumPy below 2.4: its kernels are not run"
    return None


def in_a_process_of_its_own(*options: str) -> None:
    """Runs tests of tests/gpu_*.py; their summary is the message of a failure."""
    reason = None if DEVICE == "cuda" else why_not_interpreted()
    if reason is not None:
        pytest.skip(reason)
    interpreted = {} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **interpreted}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [x.to(DEVICE) for x in tensors]


def thinned(cases: list[Any]) -> list[Any]:
    """All cases on a GPU; in the interpreter every 30th of the long ones: all of them take a quarter of an hour."""
    long = [case for case in cases if case.marks]
    return cases if DEVICE == "cuda" else [case for case in cases if not case.marks or long.index(case) % 30 == 8]
