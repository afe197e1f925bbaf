"""The exponential moving average (EMA) of a model in training; stages are evaluated by it."""

from __future__ import annotations

import torch
from torch import nn

from sskd_fast.train.sharding import is_sharded, whole


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model for parameters; buffers (batch statistics) are copied.

    Every rank holds the whole average; sharded parameters are gathered one at a time.
    """
    if any(is_sharded(p) for p in model.parameters()):
        for own, part in zip(average.parameters(), model.parameters(), strict=True):
            own.lerp_(whole(part), 1 - decay)
    else:
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
