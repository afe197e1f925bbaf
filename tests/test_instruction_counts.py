"""The counts that "auto" goes by: loops of a disassembly, multiplied by their turns, refused if they changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cuda_binaries, instruction_counts, kernel_report
from benchmarks.cases import NEGATIVES, WIDTH
from benchmarks.cost_model import H100, negative_sampling
from benchmarks.instruction_counts import count_of, written
from benchmarks.instruction_work import ANCHORS, SCORES, TRIALS, Work, cuda_work, loops, triton_work
from benchmarks.sass_loops import executed
from benchmarks.sass_loops import loops as found_loops
from sskd_fast import _backend_costs


def listing(*texts: str) -> str:
    """As cuobjdump prints instructions, the n-th at address 16 n."""
    return "".join(f"        /*{16 * n:04x}*/      {text} ;    /* 0x00 */\n" for n, text in enumerate(texts))


NESTED = listing(
    "MOV R1, c[0x0][0x28]",
    "IADD3 R0, R0, 0x1, RZ",  # 0x10: outer loop
    "LDG.E R2, [R4.64]",  # 0x20: inner loop
    "BRA.DIV UR4, 0xd0",  # lanes that have parted ways: never
    "@P0 BRA 0xb0",  # a block at the end
    "@!P1 BRA 0x20",  # 0x50
    "@P2 BRA 0x90",
    "MUFU.EX2 R3, R3",  # 0x70: in few turns
    "FADD R3, R3, R2",
    "@P3 BRA 0x10",  # 0x90
    "EXIT",  # 0xa0
    "@!P4 BRA 0xa0",  # 0xb0: of the inner loop, which is left through it, too
    "BRA 0x50",
    "WARPSYNC.COLLECTIVE R5, 0xe0",  # 0xd0
    "BRA 0x40",
    "BRA 0xf0",
)


def test_loops_include_blocks_moved_to_the_end() -> None:
    outer, inner = found_loops(NESTED)
    assert (outer.start, outer.depth, sorted(outer.instructions)) == (1, 0, [*range(1, 10), 11, 12])
    assert (inner.start, inner.depth, sorted(inner.instructions)) == (2, 1, [2, 3, 4, 5, 11, 12])


def test_turns_multiply_and_rare_code_counts_by_its_share() -> None:
    # Outside 2; the outer loop alone 5 (1, 6, 7, 8, 9), the inner one 6.
    assert executed(NESTED, [loops((0, 10), (1, 4))]) == 2 + 10 * (5 + 4 * 6)
    rare = loops((0, 10), (1, 4), rare=(("MUFU", 0.5),))
    assert executed(NESTED, [rare]) == 2 + 10 * (3 + 0.5 * 2 + 4 * 6)
    assert executed(listing("MOV R1, R2", "EXIT"), [loops()]) == 2
    assert executed(NESTED, [loops((0, 1)), loops((0, 1), (1, 1))]) == 13


@pytest.mark.parametrize("turns", [loops(), loops((0, 1)), loops((0, 1), (0, 1)), loops((0, 1), (1, 1), (0, 1))])
def test_loops_that_are_not_declared_are_refused(turns) -> None:
    message = r"^a_kernel: found loops of depths \[0, 1\], expected \[.*\]; declare the new loops in"
    with pytest.raises(ValueError, match=message):
        count_of(Work("a_kernel", 1, (turns,)), NESTED)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction in a loop matches 'HMMA'; declare the rare code again"):
        executed(NESTED, [loops((0, 1), (1, 1), rare=(("HMMA", 0.5),))])


def test_counts_are_those_of_all_warps_by_anchor() -> None:
    assert count_of(Work("a_kernel", 4 * ANCHORS, (loops((0, 1), (1, 1)),)), NESTED) == 4 * 13


def test_the_counts_of_a_file_are_replaced_and_its_times_kept(tmp_path: Path) -> None:
    measured = {"9.0": {"source": "H100", "negative_sampling": {"triton": 1.0, "cuda": 2.0}}}
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"measured": measured, "counted": {"source": "old", "negative_sampling": {}}}))
    written(file, {"pixel_contrast": {"triton": 10.4, "cuda": 20.6}}, "the command")
    assert _backend_costs.read(file) == {
        "measured": measured,
        "counted": {"source": "the command", "pixel_contrast": {"triton": 10, "cuda": 21}},
    }
    before = file.read_text()
    with pytest.raises(ValueError, match=f"{file}: counted.pixel_contrast: found"):
        written(file, {"pixel_contrast": {"triton": 10.4}}, "the command")
    assert file.read_text() == before


def test_every_operator_has_work_and_counts() -> None:
    counted = _backend_costs.read()["counted"]
    assert set(_backend_costs.OPERATORS) == set(counted) - {"source"}
    assert set(cuda_work()) == {name for name in counted if "cuda" in _backend_costs.backends_of(name)} - {"source"}


@pytest.mark.slow
def test_the_counts_of_the_package_are_those_of_its_triton_kernels() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
    counted = _backend_costs.read()["counted"]
    if kernel_report.versions() not in counted["source"]:
        pytest.skip(f"other releases made the counts: {counted['source']}")
    found = {operator: round(count) for operator, count in instruction_counts.triton_counts().items()}
    wanted = {operator: counted[operator]["triton"] for operator in _backend_costs.OPERATORS}
    assert found == wanted, (
        "python -m benchmarks.instruction_counts --json sskd_fast/backend_costs.json makes them anew"
    )


# Warp instructions for a row of 128 float32 numbers that pixel contrast gathers. Raise one only for what is worth it.
MOST_PER_ROW = {
    "triton": {"pixel_contrast_forward_kernel": 39, "pixel_contrast_candidates_backward_kernel": 20},
    "cuda": {"pixel_contrast_forward_kernel": 31, "pixel_contrast_candidates_backward_kernel": 14},
}


def per_row(works: list[Work], texts: dict[str, str]) -> dict[str, float]:
    """Kernel -> warp instructions for each negative, of the kernels that gather rows."""
    names = MOST_PER_ROW["cuda"]
    return {
        name: count_of(work, texts[work.kernel]) / NEGATIVES
        for work in works
        for name in names
        if work.kernel.startswith(name)
    }


def check_budget(found: dict[str, float], most: dict[str, float]) -> None:
    # A warp of an H100 multiplies and adds 32 pairs at a time: so many instructions take as long as memory for the row.
    as_long_as_memory = 4 * WIDTH / H100.bandwidth * H100.float32 / 64
    assert set(found) == set(most)
    assert all(count <= most[name] < as_long_as_memory / 2 for name, count in found.items()), found


def test_triton_gathers_a_row_of_the_contrast_in_few_instructions() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
    texts = instruction_counts.triton_texts(instruction_counts.launches()["pixel_contrast"])
    works = triton_work(instruction_counts.settings())["pixel_contrast"]
    check_budget(per_row(works, {name: text for name, (text,) in texts.items()}), MOST_PER_ROW["triton"])


def as_long_as_memory_for_a_trial() -> float:
    """Warp instructions in the time that an H100's memory takes for a trial's row in bytes, slot and ratio."""
    one, two = (negative_sampling(1, 0, n, SCORES, acceptance=1)["forward"].bytes for n in (1, 2))
    return (two - one) / H100.bandwidth * H100.float32 / 64


def test_triton_decides_a_trial_in_less_time_than_memory_takes_for_its_row_in_bytes() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
    texts = instruction_counts.triton_texts(instruction_counts.launches()["negative_sampling"])
    works = triton_work(instruction_counts.settings())["negative_sampling"]
    found = sum(count_of(work, text) for work in works for text in texts[work.kernel]) / TRIALS
    assert found <= 27 < as_long_as_memory_for_a_trial()


@pytest.mark.slow
@pytest.mark.skipif(cuda_binaries.why_unavailable() is not None, reason="the CUDA kernels are not compiled here")
def test_cuda_decides_a_trial_in_less_time_than_memory_takes_for_its_row_in_bytes() -> None:
    texts = cuda_binaries.listings(instruction_counts.ARCH, "negative_sampling")
    texts |= cuda_binaries.listings(instruction_counts.ARCH, "compressed_rows")
    found = sum(count_of(work, texts[work.kernel]) for work in cuda_work()["negative_sampling"]) / TRIALS
    assert found <= 23 < as_long_as_memory_for_a_trial()


# Warp instructions for a pair of anchor and candidate, with 128 numbers in float32 and 109 scores. An H100 multiplies
# its parts of float16 in the time of 1.5 and 2.25 warp instructions of a multiprocessor.
MOST_PER_PAIR = {"expected_pixel_contrast_forward_kernel": 0.95, "expected_pixel_contrast_backward_kernel": 1.1}


def test_the_expected_form_multiplies_large_tiles_in_few_instructions() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
    texts = instruction_counts.triton_texts(instruction_counts.launches()["expected_pixel_contrast"])
    works = {work.kernel: work for work in triton_work(instruction_counts.settings())["expected_pixel_contrast"]}
    for name, most in MOST_PER_PAIR.items():
        for text in texts[name]:
            assert "HGMMA.64x128x16.F32" in text and "UTMALDG" in text
            assert count_of(works[name], text) / ANCHORS <= most, name


@pytest.mark.slow
@pytest.mark.skipif(cuda_binaries.why_unavailable() is not None, reason="the CUDA kernels are not compiled here")
def test_cuda_gathers_a_row_of_the_contrast_in_few_instructions() -> None:
    texts = cuda_binaries.listings(instruction_counts.ARCH, "pixel_contrast")
    check_budget(per_row(cuda_work()["pixel_contrast"], texts), MOST_PER_ROW["cuda"])
