"""Division of rows by their norm, as in torch.nn.functional.normalize, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_NORM = 1e-12


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows (..., D) / norm, and the norm (..., 1), which counts as at least 1e-12."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(_LEAST_NORM)
    return rows / norm, norm


def unit_rows_backward(grad: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    """Gradient of the rows from that of the unit rows; it has no radial part unless the norm was clamped."""
    radial = (grad * unit).sum(-1, keepdim=True).masked_fill(norm <= _LEAST_NORM, 0)
    return (grad - radial * unit) / norm
