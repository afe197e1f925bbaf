"""What the Triton kernels compile to for GPUs that are not there: registers, spills, occupancy, loads, products."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("TRITON_INTERPRET is set: kernels are not compiled", allow_module_level=True)

from benchmarks import kernel_report
from benchmarks.kernel_binaries import ARCHS, Binary, compiled
from sskd_fast import kernels

OTHERS = [pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHS if arch != "sm_90"]
EACH_ARCH = pytest.mark.parametrize("arch", ["sm_90", *OTHERS])
KERNELS = {
    "score_fusion_forward_kernel",
    "score_fusion_backward_kernel",
    "score_fusion_resize_backward_kernel",
    "negative_sampling_trials_kernel",
    "negative_sampling_race_kernel",
    "negative_sampling_hardest_kernel",
    "pixel_contrast_forward_kernel",
    "pixel_contrast_rows_backward_kernel",
    "pixel_contrast_candidates_backward_kernel",
    "expected_pixel_contrast_forward_kernel",
    "expected_pixel_contrast_backward_kernel",
    "expected_pixel_contrast_unit_rows_backward_kernel",
}
_cache: dict[tuple[str, torch.dtype], dict[str, Binary]] = {}


def binaries(arch: str, dtype: torch.dtype = torch.float32) -> dict[str, Binary]:
    if (arch, dtype) not in _cache:
        _cache[arch, dtype] = {b.kernel: b for b in kernel_report.triton_binaries(arch, dtype)}
    return _cache[arch, dtype]


@EACH_ARCH
def test_every_kernel_compiles_without_spills(arch):
    found = binaries(arch)
    assert set(found) == KERNELS
    assert {name: b.spill_bytes for name, b in found.items() if b.spill_bytes} == {}


def test_kernels_compile_for_one_of_each():
    """Triton makes constants of arguments that are 1, which have less to them than numbers known at run time."""
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in ("_rows", *kernel_report.OPERATORS)]
    found = compiled("sm_90", kernel_report.triton_launches(size=1, negatives=1), modules)
    assert {binary.kernel for binary in found} == KERNELS


@EACH_ARCH
def test_kernels_that_gather_leave_room_for_half_of_the_threads(arch):
    found = {n: b for n, b in binaries(arch).items() if not n.startswith("expected")}
    assert {name: b.occupancy for name, b in found.items() if b.occupancy < 0.5} == {}


@EACH_ARCH
def test_rows_are_loaded_sixteen_bytes_at_a_time(arch):
    names = KERNELS - {"score_fusion_resize_backward_kernel"}  # it reads what is next to each other only by chance
    assert {name: binaries(arch)[name].load_bytes for name in names if binaries(arch)[name].load_bytes != 16} == {}


@EACH_ARCH
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_the_expected_form_multiplies_on_tensor_cores_and_fits(arch, dtype):
    for name in ("expected_pixel_contrast_forward_kernel", "expected_pixel_contrast_backward_kernel"):
        binary = binaries(arch, dtype)[name]
        assert binary.tensor_core
        assert binary.spill_bytes == 0
        assert binary.shared_bytes <= {"gfx942": 64 << 10}.get(arch, 163 << 10)


def test_the_report_writes_the_list_and_the_page(tmp_path: Path) -> None:
    binary = Binary("pixel_contrast_forward_kernel", "triton", "sm_90", 64, 0, 512, 0.5, 16, False)
    page = f"# GPU\n\n{kernel_report.BEGIN}\nold\n{kernel_report.END}\nrest\n"
    updated = kernel_report.updated(page, [binary])
    assert "| pixel_contrast_forward_kernel | triton | sm_90 | 64 | 0 | 512 | 50 % | 128 bit | no |" in updated
    assert "old" not in updated and updated.endswith(f"{kernel_report.END}\nrest\n")
    with pytest.raises(ValueError, match="put both lines where the table belongs"):
        kernel_report.updated("# GPU", [binary])
    assert set(json.loads(json.dumps(binary.record()))) == {
        "kernel", "backend", "arch", "registers", "spill_bytes", "shared_bytes", "occupancy", "load_bytes",
        "tensor_core",
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_every_kernel_for_every_architecture(tmp_path: Path) -> None:
    page, list_file = tmp_path / "gpu.md", tmp_path / "kernels.json"
    page.write_text(f"{kernel_report.BEGIN}\n{kernel_report.END}\n")
    command = [sys.executable, "-m", "benchmarks.kernel_report", "--json", str(list_file), "--docs", str(page)]
    subprocess.run(command, cwd=kernel_report.ROOT, check=True)
    found = {(row["kernel"], row["arch"]) for row in json.loads(list_file.read_text()) if row["backend"] == "triton"}
    assert found == {(kernel, arch) for kernel in KERNELS for arch in ARCHS}
