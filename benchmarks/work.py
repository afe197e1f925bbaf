"""A model of the least that each CPU operator has to do, and the time that the machine's peaks allow for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.cases import CASES, CLASSES, NEGATIVES, QUERIES, WIDTH, scores_of
from sskd_fast.reference.proposals import Candidates, build_proposals

LANES = 16  # float32 numbers of a register of 64 bytes
# The largest table of embeddings that is read in random order: the operators work through larger ones in tiles.
_TILE = 4 << 20


@dataclass(frozen=True)
class Work:
    """Bytes read in random order, from a table of this size; bytes read or written in order; multiply-add instructions.

    An instruction takes 64 bytes: 16 numbers of float32, or 64 products of bytes.
    """

    random_bytes: float
    table_bytes: float
    ordered_bytes: float
    multiply_adds: float

    def least_seconds(self, peaks: Mapping[str, float]) -> float:
        """The longest of three times: of either kind of access, and of arithmetic. peaks: of benchmarks/peaks.cpp."""
        return max(
            self.random_bytes / (1e9 * _rate(peaks, "random", self.table_bytes)),
            self.ordered_bytes / (1e9 * _rate(peaks, "sequential", self.ordered_bytes)),
            self.multiply_adds / (1e9 * peaks["multiply-adds"]),
        )


def work_of(operator: str, mode: str, case: str, dtype: str) -> Work:
    """The work of an operator; N pixels are anchors and candidates. What is read in order counts once."""
    pixels, size = CASES[case].pixels, 4 if dtype == "float32" else 2
    scores, row = QUERIES + CLASSES + 1, WIDTH * size
    drawn, pairs = pixels * NEGATIVES, pixels * pixels
    if operator == "score_fusion":  # masks in, scores out; the masks of a pixel mix the classes of the queries
        return Work(0, 0, pixels * (QUERIES * size + scores * 4), pixels * QUERIES * (CLASSES + 1) / LANES)
    if operator == "negative_sampling":  # a trial: a slot's cache line, and two lines of scores in bytes
        trials = pixels * trials_per_anchor(case)
        return Work(192 * trials, 128 * pixels, pixels * scores * 4 + 4 * drawn, 2 * trials)
    if operator == "pixel_contrast" and mode == "forward":  # similarities, and the negatives' pull; indices and shares
        return Work(drawn * row, min(_TILE, pixels * row), 3 * pixels * row + 8 * drawn, 2 * drawn * WIDTH / LANES)
    if operator == "pixel_contrast":  # an anchor's row and an index entry for every draw
        table = min(_TILE, pixels * row)
        return Work(drawn * (row + 8), table, 3 * pixels * row + 8 * drawn, drawn * WIDTH / LANES)
    # The expected form: similarities and weights of all pairs; backward, both again and the gradients of both sides.
    numbers = WIDTH + scores + (2 * WIDTH if mode == "backward" else 0)
    return Work(0, 0, pixels * (3 * row + 2 * scores * 4), pairs * numbers / LANES)


def trials_per_anchor(case: str) -> float:
    """Expected number of trials of the sampler for the case's scores."""
    rows = scores_of(CASES[case])
    nobodys = torch.full((len(rows),), -1)
    candidates = Candidates(rows, None, torch.zeros_like(nobodys), False)
    acceptance = build_proposals(rows, nobodys, candidates).acceptance
    return float((NEGATIVES / acceptance).mean())


def _rate(peaks: Mapping[str, float], kind: str, size: float) -> float:
    """GB/s of this kind for the smallest table measured that is at least `size` bytes, or the largest."""
    known = {float(name.split("-")[-2]): rate for name, rate in peaks.items() if name.startswith(kind)}
    return known[min((s for s in known if s * 2**20 >= size), default=max(known))]
