"""The state of PyTorch's random generators: the CPU's and that of the GPU in use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The generators' states; cuda: None if no GPU is in use."""

    cpu: Tensor
    cuda: Tensor | None = None

    @classmethod
    def now(cls) -> RandomState:
        """The current states."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None)

    def restore(self) -> None:
        """Restores the generators; the GPU's only if a GPU is in use and its state is known."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self.cuda)
