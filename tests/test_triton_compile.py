"""Binaries of the Triton kernels, compiled without a GPU: registers, spills, occupancy, loads, products.

Continuous integration runs this with the newest Triton and with the oldest supported one.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("TRITON_INTERPRET is set: kernels are not compiled", allow_module_level=True)

from benchmarks import kernel_report
from benchmarks.kernel_binaries import ARCHS, Binary, compiled
from sskd_fast import kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


MOST_USED = (torch.float32, torch.bfloat16)


def each(dtypes: tuple[torch.dtype, ...]) -> pytest.MarkDecorator:
    """Runs a test for every architecture and these types of the embeddings, for all but sm_90 the most used ones.

    The most used ones for sm_90 are fast.
    """

    def case(arch: str, dtype: torch.dtype) -> Any:
        fast = arch == "sm_90" and dtype in MOST_USED
        return pytest.param(arch, dtype, marks=() if fast else pytest.mark.slow)

    cases = [case(arch, dtype) for arch in ARCHS for dtype in dtypes if arch == "sm_90" or dtype in MOST_USED]
    return pytest.mark.parametrize(("arch", "dtype"), cases, ids=str)


EACH = each(DTYPES)
# float64 is there to check the other types by: it has to compile well, and need not be fast.
EACH_TRAINED = each(DTYPES[:-1])
KERNELS = {
    "score_fusion_forward_kernel",
    "score_fusion_backward_kernel",
    "score_fusion_resize_backward_kernel",
    "negative_sampling_sums_kernel",
    "negative_sampling_centres_kernel",
    "negative_sampling_distances_kernel",
    "negative_sampling_slots_kernel",
    "negative_sampling_layout_kernel",
    "negative_sampling_bytes_kernel",
    "negative_sampling_trials_kernel",
    "negative_sampling_race_kernel",
    "hardest_negatives_kernel",
    "pixel_contrast_norms_kernel",
    "pixel_contrast_forward_kernel",
    "pixel_contrast_rows_backward_kernel",
    "pixel_contrast_candidates_backward_kernel",
    "expected_pixel_contrast_parts_kernel",
    "expected_pixel_contrast_forward_kernel",
    "expected_pixel_contrast_backward_kernel",
    "expected_pixel_contrast_unit_rows_backward_kernel",
}


# One warp for each anchor: it computes once what belongs to the anchor, and needs no barrier. Parts of an anchor, of a
# row and of a sum take 48 registers of a thread, and four rows for each warp are enough in flight.
LEAST_OCCUPANCY = {"pixel_contrast_forward_kernel": 0.375}
# Every warp of a sampling program computes the random words, levels and ranks of all its trials over again, and waits
# for the others at each sum. So it has one warp or two, which hold more rows each and still leave room for a quarter.
# Programs that sum rows for the tables are few.
SAMPLING = {
    "negative_sampling_trials_kernel",
    "negative_sampling_race_kernel",
    "negative_sampling_sums_kernel",
    "negative_sampling_distances_kernel",
}
# They read numbers by themselves: of pixels next to each other only by chance, of candidates and anchors.
NOT_ROWS = {"score_fusion_resize_backward_kernel", "negative_sampling_slots_kernel", "negative_sampling_layout_kernel"}


@functools.cache
def compiled_here(arch: str, dtype: torch.dtype) -> dict[str, Binary]:
    return {b.kernel: b for b in kernel_report.triton_binaries(arch, dtype)}


@pytest.fixture
def binaries(request: pytest.FixtureRequest, arch: str, dtype: torch.dtype) -> dict[str, Binary]:
    """The kernels for one architecture: what the command does not compile, and the fast ones, are compiled here."""
    if arch == "sm_90" or dtype != torch.float32:
        return compiled_here(arch, dtype)
    found = request.getfixturevalue("kernel_list")
    return {row["kernel"]: Binary(**row) for row in found if row["backend"] == "triton" and row["arch"] == arch}


@EACH
def test_every_kernel_compiles_without_spills(binaries):
    assert set(binaries) == KERNELS
    assert {name: b.spill_bytes for name, b in binaries.items() if b.spill_bytes} == {}


def test_kernels_compile_for_one_of_each():
    """Triton makes constants of arguments that are 1, which have less to them than numbers known at run time."""
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in kernel_report.MODULES]
    found = compiled("sm_90", kernel_report.triton_launches(size=1, negatives=1), modules)
    assert {binary.kernel for binary in found} == KERNELS


@EACH_TRAINED
def test_kernels_that_gather_leave_room_for_half_of_the_threads_and_sampling_for_a_quarter(binaries):
    found = {name: b.occupancy for name, b in binaries.items() if not name.startswith("expected")}
    least = {**LEAST_OCCUPANCY, **dict.fromkeys(SAMPLING, 0.25)}
    assert {name: part for name, part in found.items() if part < least.get(name, 0.5)} == {}


@EACH
def test_rows_are_loaded_sixteen_bytes_at_a_time(binaries):
    names = KERNELS - NOT_ROWS
    assert {name: binaries[name].load_bytes for name in names if binaries[name].load_bytes != 16} == {}


@EACH
def test_the_expected_form_fits_and_multiplies_on_tensor_cores(binaries, arch, dtype):
    for name in ("expected_pixel_contrast_forward_kernel", "expected_pixel_contrast_backward_kernel"):
        assert binaries[name].tensor_core or dtype == torch.float64
        assert binaries[name].shared_bytes <= {"gfx942": 64 << 10}.get(arch, 163 << 10)


def test_the_report_has_a_row_for_each_kernel() -> None:
    binary = Binary("pixel_contrast_forward_kernel", "triton", "sm_90", 64, 0, 512, 0.5, 16, False)
    row = "| pixel_contrast_forward_kernel | triton | sm_90 | 64 | 0 | 512 | 50 % | 128 bit | no |"
    assert row in kernel_report.table([binary])
    assert set(json.loads(json.dumps(binary.record()))) == {
        "kernel", "backend", "arch", "registers", "spill_bytes", "shared_bytes", "occupancy", "load_bytes",
        "tensor_core",
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_every_kernel_for_every_architecture(kernel_list):
    found = {(row["kernel"], row["arch"]) for row in kernel_list if row["backend"] == "triton"}
    assert found == {(kernel, arch) for kernel in KERNELS for arch in ARCHS}
