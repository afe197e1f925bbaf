"""The emulation of CUDA in csrc/emulation: kernels that are right pass, and their faulty twins are caught."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
ORDERS = (0, 1, 7)  # forward, reversed, shuffled by a seed
IOTA = np.arange(128)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/emulation_kernels.cu as a program, with sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("g++ was not found: the emulation is not tested")
    result = tmp_path_factory.mktemp("emulation") / "emulation_kernels"
    flags = [
        "-std=gnu++20",
        "-O0",
        "-g1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-fsanitize=address,undefined",
    ]
    command = ["g++", *flags, "-fno-sanitize-recover=undefined", "-DSSKD_EMULATION", f"-I{ROOT / 'csrc'}"]
    command += ["-x", "c++", str(ROOT / "tests" / "emulation_kernels.cu"), "-o", str(result)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return result


def run(program: Path, kernel: str, order: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, kernel, str(order)], capture_output=True, text=True, timeout=60)


def numbers(program: Path, kernel: str, order: int) -> NDArray[np.float64]:
    done = run(program, kernel, order)
    assert done.returncode == 0, done.stderr
    return np.array(done.stdout.split(), dtype=np.float64)


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_changes_the_result(program, order):
    expected = IOTA.reshape(2, 64)[:, ::-1].reshape(-1)
    assert np.array_equal(numbers(program, "barrier", order), expected)
    faulty = numbers(program, "missing_barrier", order)
    assert np.isnan(faulty).sum() >= 32 and not np.array_equal(faulty, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_a_wrong_shuffle_is_caught(program, order):
    expected = IOTA.reshape(4, 32).sum(1)
    assert np.array_equal(numbers(program, "shuffle", order)[:4], expected)
    assert not np.array_equal(numbers(program, "shuffle_without_the_last_step", order)[:4], expected)
    done = run(program, "shuffle_beyond_the_mask", order)
    assert done.returncode == 1
    assert "__shfl_xor_sync reads from lane" in done.stderr and "which is not in its mask" in done.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_accesses_out_of_bounds_are_caught(program, order):
    assert np.array_equal(numbers(program, "in_bounds", order), [*range(1, 128), 127])
    done = run(program, "out_of_bounds", order)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "in void increments" in done.stderr
    assert np.array_equal(numbers(program, "dynamic_memory", order)[:32], IOTA[31::-1])
    done = run(program, "dynamic_memory_too_small", order)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "fills_dynamic_memory" in done.stderr


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("barrier_after_exit", "waits for ever in __syncthreads at "),
        ("barriers_in_two_places", "thread (40, 0, 0) waits for ever in __syncthreads at "),
        ("ballot_without_a_lane", "waits for ever in __ballot_sync at "),
        ("block_too_large", "a block of 1025 threads, expected 1 to 1024"),
        ("empty_grid", "a grid of (0, 1, 1) blocks, expected 1 to "),
    ],
)
def test_deadlocks_and_invalid_launches_are_errors(program, kernel, message, order):
    done = run(program, kernel, order)
    assert done.returncode == 1 and message in done.stderr
    if kernel != "barriers_in_two_places" and "waits" in message:
        assert "; 1 threads of the block have ended" in done.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_shared_memory_of_another_block_is_gone(program, order):
    found = numbers(program, "stale_shared_memory", order)
    assert np.array_equal(found[:32], np.ones(32)) and np.isnan(found[32:64]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_of_a_warp_work_together(program, order):
    lane = np.arange(32)
    x = 3 * lane
    same = (x[:, None] % 5 == x % 5) @ (1 << lane)
    expected = np.stack(
        [
            x[(lane + 3) % 32],
            x[lane // 8 * 8 + 1],
            np.where(lane < 3, x, x[lane - 3]),
            np.where(lane % 16 > 12, x, x[np.minimum(lane + 3, 31)]),
            x[lane ^ 5],
            np.full(32, -1),
            np.ones(32),
            np.where(same >= 1 << 31, same - (1 << 32), same),
            np.full(32, x.sum()),
            np.full(32, 93),
            np.where(lane < 16, x[lane ^ 1], x[16:].sum()),
            x[lane ^ 1],
        ]
    )
    assert np.array_equal(numbers(program, "warp_functions", order).reshape(12, 32), expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["bounds", "half_bounds"])
@pytest.mark.parametrize("width", [2, 9, 116, 128, 300])
def test_bounds_from_rows_in_bytes_hold_and_are_close(program, width, kind, order):
    """Rows that are 0, next to 0 or not finite have no bounds: the exact score decides."""
    low, high = numbers(program, f"{kind}_{width}", order).reshape(32, 32, 2).transpose(2, 0, 1)[:, 4:, 4:]
    rows = ((np.arange(32 * width) * 7919 % 1009).astype(np.float32) / np.float32(1009)).reshape(32, width)[4:]
    rows = rows.astype(np.float16 if kind == "half_bounds" else np.float32).astype(np.float64)
    exact = np.square(rows[:, None] - rows).sum(2) / 2
    assert (low <= exact).all() and (exact <= high).all()
    squares = np.square(rows).sum(1)
    # A row is off by half a unit a number at most, a unit is 1/127 of the largest; the first one has a second layer.
    assert ((high - low) / (squares[:, None] + squares)).max() < np.sqrt(width) / 127 + 1e-3
    every = numbers(program, f"{kind}_{width}", order).reshape(32, 32, 2)
    for open_ones in (every[:4], every[:, :4]):
        assert (open_ones[..., 0] == 0).all() and not np.isfinite(open_ones[..., 1]).any()


@pytest.mark.slow
def test_the_emulated_operators_are_clean_under_sanitizers(tmp_path):
    """The tests of csrc/cuda again, with AddressSanitizer and UndefinedBehaviorSanitizer in the emulated library."""

    def runtime(name: str) -> str:
        found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g1"
    preload = " ".join(runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so"))
    options = {"SSKD_FAST_CXXFLAGS": flags, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    env = {**os.environ, **options, "SSKD_FAST_CACHE": str(tmp_path)}
    files = sorted(str(path) for path in (ROOT / "tests").glob("test_cuda_*.py") if path.stem != "test_cuda_binaries")
    # The order of the threads changes no address: one does. Nor does how exact a result is, a margin, or bfloat16 in
    # place of float16. More memory than there is ends a process with AddressSanitizer.
    left_out = "reversed", "shuffled", "bfloat16", "-0.1-", "changes_no_bit", "as_exact", "lack_of_memory"
    command = [sys.executable, "-m", "pytest", "-q", *files, "-k", f"not ({' or '.join(left_out)})"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"\d{3,} passed", done.stdout)
    assert "Sanitizer" not in done.stdout + done.stderr and "runtime error" not in done.stdout + done.stderr


def test_nothing_in_the_launchers_waits_for_the_device():
    """A CUDA graph cannot hold a step that does."""
    waiting = re.compile(r"\.item[(<]|\.cpu\(|nonzero|masked_select|unique|Synchronize|cudaMemcpy\w*\(|at::kCPU")
    files = [path for path in (ROOT / "csrc" / "cuda").iterdir() if path.suffix in {".h", ".cpp", ".cu"}]
    assert len(files) > 8
    assert [path.name for path in files if waiting.search(path.read_text(encoding="utf-8"))] == []
