"""The GPU tests need nothing but torch, Triton, NumPy, SciPy, pytest and their requirements."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from on_device import DEVICE, ROOT, why_not_interpreted
from only_these import closure

BARE = "torch,triton,numpy,scipy,pytest"


def only_these(distributions: str, *command: str) -> subprocess.CompletedProcess[str]:
    """The command run where only these distributions are to be had."""
    interpreted = {} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"}
    return subprocess.run(
        [sys.executable, "tests/only_these.py", distributions, "--", "-m", *command],
        cwd=ROOT,
        env={**os.environ, **interpreted},
        capture_output=True,
        text=True,
    )


def test_the_gpu_tests_need_no_more_than_a_bare_machine_has():
    """All are collected and a few are run: nearly all that they import stands at the top of their files."""
    reason = None if DEVICE == "cuda" else why_not_interpreted()
    if reason is not None:
        pytest.skip(reason)
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("gpu_*.py"))
    assert "tests/gpu_operators.py" in files
    done = only_these(BARE, "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "hardest or uniform")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


def test_modules_of_other_distributions_are_refused_by_name():
    done = only_these("numpy", "PIL.features")
    assert done.returncode != 0 and "No module named 'PIL'" in done.stderr
    assert "not to be imported with numpy alone: PIL" in done.stderr
    assert only_these("numpy,pillow", "PIL.features").returncode == 0


def test_plugins_of_other_distributions_are_not_loaded():
    assert "xdist" in only_these("pytest,pytest-xdist", "pytest", "--version", "--version").stdout
    assert "xdist" not in only_these("pytest", "pytest", "--version", "--version").stdout


def test_requirements_of_a_distribution_belong_to_it():
    found = closure(["torch", "pytest"])
    assert {"torch", "sympy", "mpmath", "pytest", "pluggy"} <= found
    assert not {"pillow", "pycocotools", "pytest-xdist", "optree"} & found
