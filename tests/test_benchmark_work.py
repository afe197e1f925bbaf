"""The least time of an operator follows from what it reads and computes, and from the rates of the machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.__main__ import peaks
from benchmarks.cases import COARSE
from benchmarks.work import Work, trials_per_anchor, work_of

PEAKS = {"random-1-MB": 200.0, "random-8-MB": 100.0, "sequential-1-MB": 400.0, "sequential-8-MB": 50.0}
PEAKS["multiply-adds"] = 10.0


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work(2e9, 2**20, 0, 0), 0.01),  # fits the table of 1 MB
        (Work(2e9, 2**20 + 1, 0, 0), 0.02),
        (Work(2e9, 2**30, 0, 0), 0.02),  # larger than every table measured
        (Work(0, 0, 4e5, 0), 1e-6),
        (Work(0, 0, 1e9, 0), 0.02),
        (Work(0, 0, 0, 5e9), 0.5),
        (Work(2e9, 2**20, 1e9, 5e7), 0.02),  # the longest, not the sum
    ],
)
def test_the_slowest_part_bounds_the_whole(work: Work, seconds: float) -> None:
    assert work.least_seconds(PEAKS) == pytest.approx(seconds)


def test_work_of_the_operators() -> None:
    """5,624 pixels with 200 draws of 128 numbers each, 100 queries, 8 classes and no object."""
    drawn, pixels = 5624 * 200, 5624
    forward = work_of("pixel_contrast", "forward", "8x703", "float32")
    assert forward == Work(drawn * 512, pixels * 512, pixels * 1536 + drawn * 8, drawn * 16)
    half = work_of("pixel_contrast", "backward", "8x703", "bfloat16")
    assert half == Work(drawn * 264, pixels * 256, pixels * 768 + drawn * 8, drawn * 8)
    sampled = work_of("negative_sampling", "forward", "8x703", "float32")
    trials = pixels * trials_per_anchor("8x703")
    assert trials > drawn and (sampled.random_bytes, sampled.multiply_adds) == (192 * trials, 2 * trials)
    expected = [work_of("expected_pixel_contrast", mode, "8x703", "float32") for mode in ("forward", "backward")]
    assert [x.multiply_adds for x in expected] == [pixels**2 * numbers / 16 for numbers in (237, 493)]
    fusion = work_of("score_fusion", "forward", "8x703", "bfloat16")
    assert fusion == Work(0, 0, pixels * (200 + 436), pixels * 900 / 16)
    assert work_of("pixel_contrast", "forward", "2x32768", "float32").table_bytes == 4 << 20
    assert COARSE.pixels == pixels


@pytest.mark.slow
def test_the_machines_peaks_are_measured(tmp_path: Path) -> None:
    try:
        found = peaks(tmp_path)
    except FileNotFoundError:
        pytest.skip("needs g++")
    sizes = (1, 4, 8, 32, 256)
    assert set(found) == {f"{kind}-{s}-MB" for kind in ("random", "sequential") for s in sizes} | {"multiply-adds"}
    assert min(found.values()) > 0
    # A compiler that finds the sums alike computes one of them and keeps the count.
    code = subprocess.run(["objdump", "-d", tmp_path / "peaks"], capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"\bvfn?madd\w*ps\b", code)) >= 11
