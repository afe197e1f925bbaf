"""`python -m benchmarks.unsettled_trials`: share of trials that bounds from compressed rows leave to the exact score.

Trials of the reference's tables for fused scores of mask logits of several sharpnesses, with the arithmetic of
kernels/_compressed.py in PyTorch. In bytes, a row costs a quarter of float32; with an anchor's error in bytes once
more, half of the bound goes away at no cost on tensor cores. bfloat16 would leave fewer trials open at half of the
bytes that are saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import COARSE, Case, scores_of
from sskd_fast.reference.proposals import Candidates, build_proposals

ANCHORS, TRIALS, SLACK, BLOCK = 200, 400, 2e-5, 32
FORMS = ("int8, anchors once", "int8, anchors twice", "bfloat16")


def in_bytes(rows: Tensor, layers: int) -> Tensor:
    """rows (N, E) rounded to sums of layers of int8 numbers; each layer has the error of the one before."""
    total, rest = torch.zeros_like(rows), rows
    scale = rows.abs().amax(1, keepdim=True) / 127
    for _ in range(layers):
        total = total + scale * (rest / scale.clamp_min(1e-30)).round().clamp(-127, 127)
        rest, scale = rows - total, scale / 254
    return total


def compressed(rows: Tensor, form: str, anchors: bool) -> Tensor:
    if form == "bfloat16":
        return rows.bfloat16().to(rows.dtype)
    return in_bytes(rows, 2 if anchors and form.endswith("twice") else 1)


def unsettled(scores: Tensor, form: str) -> tuple[float, float]:
    """Share of trials, and of blocks of trials with at least one, that need exact scores (N, E)."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randperm(len(scores), generator=generator)[:ANCHORS]
    nobodys, group = torch.full((ANCHORS,), -1), torch.zeros(len(scores), dtype=torch.int64)
    tables = build_proposals(scores[own], nobodys, Candidates(scores, None, group, False))
    slot = (torch.rand(ANCHORS, TRIALS, generator=generator) * tables.count[:, None]).long()
    drawn = tables.entries[slot + tables.first[:, None]].long()
    level = torch.rand(ANCHORS, TRIALS, generator=generator).double() * tables.bound[:, None]
    ratio = tables.ratio[drawn + tables.table[:, None]]
    rows = (scores.double() - scores.double().mean(0)).float()
    a, q = compressed(rows[own], form, True), compressed(rows, form, False)
    a_error, q_error = (rows[own] - a).norm(dim=1)[:, None], (rows - q).norm(dim=1)[drawn]
    a_norm, q_norm = rows[own].norm(dim=1)[:, None], rows.norm(dim=1)[drawn]
    squares = a_norm**2 + q_norm**2
    s = squares / 2 - torch.stack([q[drawn[i]] @ a[i] for i in range(ANCHORS)])
    margin = a_error * q_norm + (a_norm + a_error) * q_error + SLACK * squares
    open_ = (level >= ratio * (s - margin).clamp_min(0)) & (level < ratio * (s + margin))
    blocks = open_[:, : TRIALS // BLOCK * BLOCK].view(ANCHORS, -1, BLOCK).any(2)
    return float(open_.double().mean()), float(blocks.double().mean())


def main() -> None:
    for sharpness in (4.0, 1.0, 0.25):
        case = Case(COARSE.images, COARSE.height, COARSE.width, sharpness)
        scores = scores_of(case)
        for form in FORMS:
            trials, blocks = unsettled(scores, form)
            print(f"{case.name}, {form}: {100 * trials:.1f} % of trials, {100 * blocks:.0f} % of blocks of {BLOCK}")


if __name__ == "__main__":
    main()
