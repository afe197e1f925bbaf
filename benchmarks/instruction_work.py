"""The loops of every GPU kernel, their turns in the published case, and the warps that run them.

The case: 8 images of 703 pixels, each an anchor and a candidate, and 200 negatives. 100 queries, 8 classes and
no-object, embeddings of 128 numbers in float32. Half of the trials are accepted; bounds leave the share of
cost_model.UNSETTLED to exact scores. Hardest negatives have twice as many draws as negatives. Loops are listed
by address: (nesting depth, turns each time that it is entered). The compiler may unroll a loop into one with fewer
turns and another one for the rest. If it does so only for some launch configurations, a kernel has several lists. If
only some warps enter a loop, or only in some turns, the mean counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.cases import CLASSES, COARSE, NEGATIVES, QUERIES, WIDTH
from benchmarks.cost_model import ACCEPTANCE, UNSETTLED
from benchmarks.sass_loops import Turns

ANCHORS, IMAGES, PIXELS = COARSE.pixels, COARSE.images, COARSE.height * COARSE.width
MIXED = CLASSES + 1  # with no-object
SCORES = QUERIES + MIXED
TRIALS, DRAWS = NEGATIVES / ACCEPTANCE, 2 * NEGATIVES
LINES = math.ceil(SCORES / 32)  # of a row of scores: 128 bytes

Settings = Mapping[str, Mapping[str, int]]  # function of kernels/_tuning.py -> launch configuration


@dataclass(frozen=True)
class Work:
    """A kernel of an operator: its warps in the whole case, and its loops."""

    kernel: str
    warps: float
    turns: tuple[Turns, ...]


def loops(*listed: tuple[int, float], rare: tuple[tuple[str, float], ...] = ()) -> Turns:
    return Turns(listed, rare)


def triton_work(settings: Settings) -> dict[str, list[Work]]:
    """Operator -> its kernels."""

    work, blocks_of = partial(_launched, settings), partial(_blocks_of, settings)
    trials, rows = settings["sampling_trials"], settings["gathered"]["BLOCK_R"]
    blocks, tail = TRIALS / trials["BLOCK_T"] + 0.5, (0, 0.0)
    held = sum(math.ceil(n / trials["BLOCK_HELD"]) for n in range(NEGATIVES)) / NEGATIVES
    contrast = math.ceil(NEGATIVES / settings["contrast"]["BLOCK_R"])
    fusion = {mode: IMAGES * blocks_of(f"fusion_{mode}", "BLOCK_N", PIXELS) for mode in ("forward", "backward")}
    own = work(
        "pixel_contrast_rows_backward_kernel", "rows_backward", blocks_of("rows_backward", "BLOCK_A", ANCHORS), loops()
    )
    return {
        "score_fusion": [
            work("score_fusion_forward_kernel", "fusion_forward", fusion["forward"], loops()),
            work("score_fusion_backward_kernel", "fusion_backward", fusion["backward"], loops((0, MIXED), (0, MIXED))),
        ],
        "negative_sampling": [
            work(
                "negative_sampling_bytes_kernel",
                "compression",
                blocks_of("compression", "ROWS", ANCHORS),
                loops((0, LINES), (0, LINES)),
            ),
            work(
                "negative_sampling_trials_kernel",
                "sampling_trials",
                ANCHORS,
                loops((0, blocks), (1, UNSETTLED * trials["BLOCK_T"]), (1, held), tail),
            ),
        ],
        "hardest_negatives": [
            work("hardest_negatives_kernel", "gathered", ANCHORS, loops((0, math.ceil(DRAWS / rows))))
        ],
        "pixel_contrast": [
            work(
                "pixel_contrast_norms_kernel", "rows_backward", blocks_of("rows_backward", "BLOCK_A", ANCHORS), loops()
            ),
            work("pixel_contrast_forward_kernel", "contrast", ANCHORS, loops((0, contrast), (0, contrast // 4))),
            own,
            work("pixel_contrast_candidates_backward_kernel", "contrast", ANCHORS, loops((0, contrast + 0.5))),
        ],
        "expected_pixel_contrast": _triton_expected(settings, own),
    }


def _launched(settings: Settings, kernel: str, tuning: str, blocks: float, *turns: Turns) -> Work:
    """The work of a kernel's programs, launched as a function of kernels/_tuning.py says."""
    return Work(kernel, blocks * settings[tuning]["num_warps"], turns)


def _blocks_of(settings: Settings, tuning: str, size: str, count: int) -> int:
    """The number of blocks of that size of a launch configuration which hold `count`."""
    return math.ceil(count / settings[tuning][size])


def _triton_expected(settings: Settings, own: Work) -> list[Work]:
    """own: the work on rows that anchors own."""
    work, blocks_of = partial(_launched, settings), partial(_blocks_of, settings)
    tiles = {mode: blocks_of(f"expected_{mode}", "BLOCK_J", ANCHORS) for mode in ("forward", "backward")}
    rows_of = {mode: blocks_of(f"expected_{mode}", "BLOCK_I", ANCHORS) for mode in ("forward", "backward")}
    score_block = settings["panels"]["BLOCK_S"]
    panels = (1, WIDTH / settings["panels"]["BLOCK_W"]), (1, math.ceil(SCORES / score_block))
    waits = (2, 0.0)  # for a tile that has not arrived
    parts = 4 * 128 * math.ceil(ANCHORS / 128) / settings["rows_backward"]["BLOCK_A"]  # both sides, in both passes
    return [
        work("expected_pixel_contrast_parts_kernel", "rows_backward", parts, loops()),
        work(
            "expected_pixel_contrast_forward_kernel",
            "expected_forward",
            rows_of["forward"],
            loops((0, tiles["forward"]), *panels, (0, panels[0][1]), *[waits] * 4),
        ),
        own,
        work(
            "expected_pixel_contrast_backward_kernel",  # for the anchors, and once more for the candidates
            "expected_backward",
            rows_of["backward"],
            loops((0, tiles["backward"]), *panels, *[waits] * 4, (1, 0.0), (1, 0.0)),
        ),
        work(
            "expected_pixel_contrast_unit_rows_backward_kernel",
            "rows_backward",
            blocks_of("rows_backward", "BLOCK_A", ANCHORS),
            loops(),
        ),
    ]


def cuda_work() -> dict[str, list[Work]]:
    """Operator -> its kernels, of those operators that have CUDA kernels. One that runs twice is listed twice."""
    norms = [Work("pixel_contrast_norms_kernel<float>", 3 * ANCHORS / 4, (loops((0, WIDTH / 4 / 8)),))]
    anchors = Work("pixel_contrast_anchors_backward_kernel<float>", ANCHORS, (loops(*[(0, 1)] * 4),))
    packs, passes = WIDTH / 4 / 8, math.ceil(NEGATIVES / 32)
    stride = math.ceil((SCORES + 12) / 32) * 32  # bytes of a row
    # Stores by lanes are unrolled by four and by sixteen.
    cleared = math.ceil(NEGATIVES / 32) % 4
    chains = 2  # further probes of the hash set by the worst lane of a warp
    trials = loops(
        (0, cleared),
        (0, 0),
        (0, 3),
        (0, TRIALS / 32 + 0.5),
        (1, 2),
        (2, math.ceil(stride / 16 / 8)),
        (1, UNSETTLED * 32),
        (2, math.ceil(SCORES / 4 / 32)),
        (1, chains),
        (1, chains),
        # Every other turn draws random numbers.
        rare=((r"\bIMAD\.WIDE\.U32 .* -0x2daee0ad", 0.5),),
    )
    written = loops((0, LINES), (0, (stride - 12) / 32), (0, 0))  # the last one without a second layer
    steps = math.ceil(DRAWS / 32)
    size = 2 ** math.ceil(math.log2(DRAWS))  # of the sort, whose steps a bitonic network has
    stages = math.log2(size)
    sort = (0, stages), (1, (stages + 1) / 2), (2, size / 64)
    hardest = loops((0, steps), (1, 2), (2, packs), (0, (size - DRAWS) / 32), *sort, (0, passes))
    # Four rows at a time; a candidate's uses end in the middle of the last four.
    forward = loops((0, passes), (1, NEGATIVES / 4 / passes), (0, passes))
    candidates = loops((0, 1), (1, passes), (2, (NEGATIVES / 4 + 0.5) / passes), (0, 1), (0, 1))
    index = [
        Work("inverted_index_places_kernel", ANCHORS * NEGATIVES / 32, (loops(),)),
        Work("inverted_index_starts_kernel", ANCHORS / 32, (loops((0, math.log2(ANCHORS * NEGATIVES))),)),
    ]
    part = "RowPart<float, 8, 4> >"
    return {
        "negative_sampling": [
            Work("negative_sampling_bytes_kernel<float>", ANCHORS, (written,)),
            Work("negative_sampling_trials_kernel<float>", ANCHORS, (trials,)),
        ],
        "hardest_negatives": [Work("hardest_negatives_kernel<float>", ANCHORS, (hardest,))],
        "pixel_contrast": [
            *norms,
            Work(f"pixel_contrast_forward_kernel<float, {part}", ANCHORS, (forward,)),
            *norms,
            anchors,
            *index,
            Work(f"pixel_contrast_candidates_backward_kernel<float, {part}", ANCHORS, (candidates,)),
        ],
    }
