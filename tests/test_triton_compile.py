"""What the Triton kernels compile to for GPUs that are not there: registers, spills, occupancy, loads, products."""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("TRITON_INTERPRET is set: kernels are not compiled", allow_module_level=True)

from benchmarks import kernel_report
from benchmarks.kernel_binaries import ARCHS, Binary, compiled
from benchmarks.marked import marks
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


@functools.cache
def compiled_here(arch: str) -> dict[str, Binary]:
    return {b.kernel: b for b in kernel_report.triton_binaries(arch)}


@pytest.fixture
def binaries(request: pytest.FixtureRequest, arch: str) -> dict[str, Binary]:
    """The kernels for one architecture: the newest is compiled here, the others by the command."""
    if arch == "sm_90":
        return compiled_here(arch)
    found = request.getfixturevalue("kernel_list")
    return {row["kernel"]: Binary(**row) for row in found if row["backend"] == "triton" and row["arch"] == arch}


@EACH_ARCH
def test_every_kernel_compiles_without_spills(binaries):
    assert set(binaries) == KERNELS
    assert {name: b.spill_bytes for name, b in binaries.items() if b.spill_bytes} == {}


def test_kernels_compile_for_one_of_each():
    """Triton makes constants of arguments that are 1, which have less to them than numbers known at run time."""
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in ("_rows", *kernel_report.OPERATORS)]
    found = compiled("sm_90", kernel_report.triton_launches(size=1, negatives=1), modules)
    assert {binary.kernel for binary in found} == KERNELS


@EACH_ARCH
def test_kernels_that_gather_leave_room_for_half_of_the_threads(binaries):
    found = {n: b for n, b in binaries.items() if not n.startswith("expected")}
    assert {name: b.occupancy for name, b in found.items() if b.occupancy < 0.5} == {}


@EACH_ARCH
def test_rows_are_loaded_sixteen_bytes_at_a_time(binaries):
    names = KERNELS - {"score_fusion_resize_backward_kernel"}  # it reads what is next to each other only by chance
    assert {name: binaries[name].load_bytes for name in names if binaries[name].load_bytes != 16} == {}


def multiplies_on_tensor_cores(binaries: dict[str, Binary], arch: str) -> None:
    for name in ("expected_pixel_contrast_forward_kernel", "expected_pixel_contrast_backward_kernel"):
        binary = binaries[name]
        assert binary.tensor_core
        assert binary.spill_bytes == 0
        assert binary.shared_bytes <= {"gfx942": 64 << 10}.get(arch, 163 << 10)


@EACH_ARCH
def test_the_expected_form_multiplies_on_tensor_cores_and_fits(binaries, arch):
    multiplies_on_tensor_cores(binaries, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_expected_form_of_bfloat16_multiplies_on_tensor_cores_and_fits(arch):
    module = importlib.import_module(f"{kernels.__name__}.expected_pixel_contrast")
    launches = kernel_report.triton_launches(torch.bfloat16)[-2:]
    multiplies_on_tensor_cores({b.kernel: b for b in compiled(arch, launches, [module])}, arch)


def test_the_report_writes_the_list_and_the_page(tmp_path: Path) -> None:
    binary = Binary("pixel_contrast_forward_kernel", "triton", "sm_90", 64, 0, 512, 0.5, 16, False)
    begin, end = marks(kernel_report.COMMAND)
    page = f"# GPU\n\n{begin}\nold\n{end}\nrest\n"
    updated = kernel_report.updated(page, [binary])
    assert "| pixel_contrast_forward_kernel | triton | sm_90 | 64 | 0 | 512 | 50 % | 128 bit | no |" in updated
    assert "old" not in updated and updated.endswith(f"{end}\nrest\n")
    with pytest.raises(ValueError, match="put both lines where the part belongs"):
        kernel_report.updated("# GPU", [binary])
    assert set(json.loads(json.dumps(binary.record()))) == {
        "kernel", "backend", "arch", "registers", "spill_bytes", "shared_bytes", "occupancy", "load_bytes",
        "tensor_core",
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_every_kernel_for_every_architecture(kernel_list):
    found = {(row["kernel"], row["arch"]) for row in kernel_list if row["backend"] == "triton"}
    assert found == {(kernel, arch) for kernel in KERNELS for arch in ARCHS}
