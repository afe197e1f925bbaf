"""The weight of a term of the objective, adapted so that the term's gradient is a given share of the rest's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sskd_fast import ranks
from sskd_fast.losses.joint_batch import WHOLE, JointBatch

# Steps between two measurements, each of which costs two more backward passes; and the weight of the past in smoothing.
MEASURE_EVERY = 20
_KEPT = 0.7


class GradientShare(nn.Module):
    """weight = share * |gradient of the rest| / |gradient of the term|, norms over the parameters that both reach.

    The norms, of the joint batch, are measured every MEASURE_EVERY steps, starting with the first, and smoothed.  They
    are part of the state dict, so a resumed stage continues with them.  share: above 0; 0.15 for 15 %.
    Ours: the paper has a fixed weight, lam_pxl.
    """

    steps: Tensor
    rest_norm: Tensor
    term_norm: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        if not share > 0:
            raise ValueError(f"share: expected a share above 0 of the rest's gradient, found {share}")
        self.share = share
        for name, start in (("steps", 0), ("rest_norm", 0.0), ("term_norm", 0.0)):
            self.register_buffer(name, torch.tensor(start))
        self._sums: tuple[list[Tensor | None], list[Tensor | None]] | None = None
        self._ratio = math.nan

    @property
    def weight(self) -> float:
        """The weight of the term; 0 until the term has had a gradient."""
        rest, term = float(self.rest_norm), float(self.term_norm)
        return self.share * rest / term if term > 0 else 0.0

    @property
    def due(self) -> bool:
        """True if the next step will be measured."""
        return int(self.steps) % MEASURE_EVERY == 0

    def forward(
        self, rest: Tensor, term: Tensor, parameters: Iterable[Tensor], joint: JointBatch = WHOLE
    ) -> dict[str, Tensor]:
        """Records a step. Returns "pxl_weight", the term's weight, and "pxl_gradient_share", NaN unless measured.

        rest, term: scalars with a graph, which is retained.  parameters: of the model.  joint: the joint batch of which
        they are a part; if a step comes in several parts, the last one completes the measurement.
        """
        if joint.measures and self.due:
            self._add(rest, term, [p for p in parameters if p.requires_grad])
            if joint.last:
                self._measure()
        if joint.learns and joint.last:
            self.steps += 1
        ratio = self._ratio
        if joint.learns and joint.last:
            self._ratio = math.nan
        return {"pxl_weight": rest.new_tensor(self.weight), "pxl_gradient_share": rest.new_tensor(self.weight * ratio)}

    def _add(self, rest: Tensor, term: Tensor, parameters: list[Tensor]) -> None:
        """Adds the gradients of a part of the joint batch to those of earlier parts."""
        rests, terms = (torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (rest, term))
        before = self._sums or ([None] * len(parameters), [None] * len(parameters))
        self._sums = _sums(before[0], rests), _sums(before[1], terms)

    def _measure(self) -> None:
        """Updates the norms of both gradients, and sets the ratio of the term's to the rest's in this step."""
        assert self._sums is not None
        shared = [(r, t) for r, t in zip(*self._sums, strict=True) if r is not None and t is not None]
        self._sums = None
        if not shared:
            return
        sides = [[torch.linalg.vector_norm(ranks.total(g)) for g in side] for side in zip(*shared, strict=True)]
        norms = torch.stack([torch.stack(side) for side in sides])
        # A compiled graph gives zeros to its parameters that a term does not reach.  NaN is reached.
        reached = (norms != 0).all(0)
        rest_norm, term_norm = (float(norm) for norm in norms[:, reached if reached.any() else ...].norm(dim=1))
        kept = _KEPT if int(self.steps) else 0.0
        self.rest_norm.mul_(kept).add_((1 - kept) * rest_norm)
        self.term_norm.mul_(kept).add_((1 - kept) * term_norm)
        self._ratio = term_norm / rest_norm if rest_norm > 0 else math.nan


def _sums(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums of gradients; None for a parameter that neither of them reaches."""
    return [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]
