"""Threads and memory of a training process, as the C libraries see them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP and C library are Linux's")


def python(*arguments: str, **environment: str) -> str:
    """The output of a fresh interpreter, on both streams."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


@linux
@pytest.mark.parametrize(
    ("chosen", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_the_main_job_waits_briefly_unless_told_otherwise(chosen: dict[str, str], spins: str) -> None:
    printed = python("-m", "sskd_fast.run", "--help", OMP_DISPLAY_ENV="VERBOSE", **chosen)
    if "GOMP_SPINCOUNT" not in printed:
        pytest.skip("this torch does not come with GNU's OpenMP")
    assert f"GOMP_SPINCOUNT = '{spins}'" in printed


FAULTS = """
import resource, sys, torch
from sskd_fast import _process

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    if not _process.keep_freed_memory():
        sys.exit("the C library is not glibc")
for _ in range(6):  # 4 tensors of 64 MB at a time: the C library keeps none so large by itself
    before = faults()
    tensors = [torch.zeros(2**24) for _ in range(4)]
    del tensors
print(faults() - before)
"""


@linux
def test_kept_memory_is_used_again_without_page_faults() -> None:
    given_back, kept = (int(python("-c", FAULTS, choice)) for choice in ("give", "keep"))
    pages = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert given_back > pages // 1000  # fresh memory, in pages of whatever size
    assert kept < given_back / 4


@pytest.mark.slow
@linux
def test_the_benchmark_of_a_training_step_has_a_line_a_variant() -> None:
    printed = python("-m", "benchmarks.training_step", "--steps", "2", "--rounds", "1", "--threads", "1")
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| as the main job", "| memory given back", "| long waits"]
    assert all(float(line.split(" | ")[1].split()[0]) > 0 for line in lines[1:])


def test_the_benchmark_of_a_training_step_refuses_a_gpu_that_is_not_there() -> None:
    command = [sys.executable, "-m", "benchmarks.training_step", "--device", "cuda"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--device cuda: torch sees no GPU; leave --device out to time the CPU" in done.stderr


@linux
def test_memory_is_left_alone_where_the_user_has_set_it_up() -> None:
    asked = "from sskd_fast import _process; print(_process.keep_freed_memory())"
    assert python("-c", asked, MALLOC_TOP_PAD_="0").strip() == "False"
    assert python("-c", asked).strip() == "True"
