"""Binaries that nvcc makes of csrc/cuda, without a GPU: no spills, high occupancy, wide loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cuda_binaries

NO_TOOLS = cuda_binaries.why_unavailable()
needs_tools = pytest.mark.skipif(NO_TOOLS is not None, reason=f"the CUDA kernels are not compiled: {NO_TOOLS}")
# Kernels that read rows of a matrix, 16 bytes at a time, where rows are a whole number of those.
READ_ROWS = ("trials_kernel", "race_kernel", "hardest_")


def of(kernel_list: list[dict[str, Any]], arch: str) -> list[dict[str, Any]]:
    """The CUDA kernels of an architecture."""
    return [row for row in kernel_list if row["backend"] == "cuda" and row["arch"] == arch]


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("arch", list(cuda_binaries.CAPABILITIES))
@pytest.mark.parametrize(("operator", "least"), [("negative_sampling", 8), ("hardest_negatives", 4)])
def test_kernels_fit_the_machine(kernel_list: list[dict[str, Any]], operator: str, least: int, arch: str) -> None:
    rows = [row for row in of(kernel_list, arch) if operator in row["kernel"]]
    assert len(rows) >= least
    assert {row["spill_bytes"] for row in rows} == {0}
    assert all(row["occupancy"] >= 0.5 for row in rows if "float>" in row["kernel"])
    assert all(row["load_bytes"] == 16 for row in rows if any(name in row["kernel"] for name in READ_ROWS))
    assert all(set(row) == {"kernel", "backend", "arch", *NUMBERS} for row in rows)


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("arch", list(cuda_binaries.CAPABILITIES))
def test_kernels_of_the_contrast_fit_the_machine(kernel_list: list[dict[str, Any]], arch: str) -> None:
    rows = [row for row in of(kernel_list, arch) if row["kernel"].startswith("pixel_contrast")]
    assert len(rows) >= 20
    assert {row["spill_bytes"] for row in rows} == {0}
    # A lane of the forward pass holds parts of an anchor, of a sum and of a row.
    assert all(row["occupancy"] >= (0.375 if "forward" in row["kernel"] else 0.5) for row in rows)
    assert all(row["load_bytes"] == 16 for row in rows)


NUMBERS = {"registers", "spill_bytes", "shared_bytes", "occupancy", "load_bytes", "tensor_core"}


def test_occupancy_is_limited_by_registers_shared_memory_and_threads() -> None:
    assert cuda_binaries.occupancy("sm_80", 32, 0, 256) == 1
    assert cuda_binaries.occupancy("sm_80", 64, 0, 256) == 0.5
    assert cuda_binaries.occupancy("sm_80", 65, 0, 256) == 3 / 8  # 72 registers a thread are taken
    assert cuda_binaries.occupancy("sm_80", 32, 40 * 1024, 256) == 0.5  # four blocks of 41 KB in 164 KB
    assert cuda_binaries.occupancy("sm_90", 32, 56 * 1024, 256) == 0.5
    assert cuda_binaries.occupancy("sm_90", 32, 0, 32) == 0.5  # 32 blocks, however small


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_binaries.why_unavailable() == f"nvcc was not found (looked for CUDA_HOME={tmp_path})"
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(0o755)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert cuda_binaries.why_unavailable() == "cuobjdump was not found (looked on the PATH and in Triton's package)"
