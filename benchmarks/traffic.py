"""Model of the bytes that each operator reads and writes at random, to compare measured times with the bandwidth."""

from __future__ import annotations

import torch

from benchmarks.cases import CASES, NEGATIVES, WIDTH, scores_of
from sskd_fast.reference.proposals import Candidates, build_proposals


def trials_per_anchor(case: str) -> float:
    """Expected number of trials of the sampler for the case's scores."""
    rows = scores_of(CASES[case])
    nobodys = torch.full((len(rows),), -1)
    candidates = Candidates(rows, None, torch.zeros_like(nobodys), False)
    acceptance = build_proposals(rows, nobodys, candidates).acceptance
    return float((NEGATIVES / acceptance).mean())


def random_bytes(operator: str, mode: str, case: str, dtype: str) -> float | None:
    """Bytes of the rows read in random order; None for operators that read in order."""
    pixels, size = CASES[case].pixels, 4 if dtype == "float32" else 2
    if operator == "negative_sampling":  # per trial, a slot's cache line and a compressed row of two lines
        return pixels * trials_per_anchor(case) * 192
    if operator == "pixel_contrast":  # forward: each negative's row once; backward: an anchor's row and an index entry
        return pixels * NEGATIVES * (WIDTH * size + (8 if mode == "backward" else 0))
    return None


def table_megabytes(operator: str, case: str, dtype: str) -> float:
    """Size in MB of the table read at random: a tile of the embeddings, or all compressed scores."""
    rows = CASES[case].pixels
    if operator == "negative_sampling":
        return rows * 128 / 2**20
    return min(4.0, rows * WIDTH * (4 if dtype == "float32" else 2) / 2**20)
