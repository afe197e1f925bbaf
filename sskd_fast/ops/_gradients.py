"""The gradients that backward passes return."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def wanted_gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """One entry for each input of a Function: gradients of its first inputs if wanted, None for all others."""
    wanted = ctx.needs_input_grad
    first = (grad if want else None for grad, want in zip(grads, wanted, strict=False))
    return *first, *[None] * (len(wanted) - len(grads))
