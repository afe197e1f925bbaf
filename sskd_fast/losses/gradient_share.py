"""The weight of a term of the objective, kept so that the term's gradient is a given share of the rest's."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Steps between two measurements, each of which costs two more backward passes, and what is kept of the one before.
MEASURE_EVERY = 20
_KEPT = 0.7


class GradientShare(nn.Module):
    """weight = share * |gradient of the rest| / |gradient of the term|, norms over the parameters that both reach.

    The norms are measured every MEASURE_EVERY steps, the first one included, and smoothed.  They are part of the state
    dict, so that a resumed stage goes on with them.  share: above 0; 0.15 for 15 %.
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

    @property
    def weight(self) -> float:
        """The weight of the term; 0 as long as it has had no gradient."""
        rest, term = float(self.rest_norm), float(self.term_norm)
        return self.share * rest / term if term > 0 else 0.0

    def forward(self, rest: Tensor, term: Tensor, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
        """Takes in a step: "pxl_weight" is the term's weight, "pxl_gradient_share" the share it has, NaN if not
        measured.

        rest, term: scalars with a graph, which is kept.  parameters: of the model.
        """
        due = int(self.steps) % MEASURE_EVERY == 0
        ratio = self._measure(rest, term, [p for p in parameters if p.requires_grad]) if due else math.nan
        self.steps += 1
        return {"pxl_weight": rest.new_tensor(self.weight), "pxl_gradient_share": rest.new_tensor(self.weight * ratio)}

    def _measure(self, rest: Tensor, term: Tensor, parameters: list[Tensor]) -> float:
        """Takes in the norms of both gradients; returns the ratio of the term's to the rest's in this step."""
        both = [torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (rest, term)]
        shared = [(r, t) for r, t in zip(*both, strict=True) if r is not None and t is not None]
        if not shared:
            return math.nan
        rest_norm, term_norm = (float(nn.utils.get_total_norm(list(g))) for g in zip(*shared, strict=True))
        kept = _KEPT if int(self.steps) else 0.0
        self.rest_norm.mul_(kept).add_((1 - kept) * rest_norm)
        self.term_norm.mul_(kept).add_((1 - kept) * term_norm)
        return term_norm / rest_norm if rest_norm > 0 else math.nan
