"""The state of an unfinished stage, from which an interrupted one is resumed; written whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from sskd_fast.files import write_atomically
from sskd_fast.train.cost import Cost


class PieceOver(Exception):
    """The time that a run may take in one piece is over; with resume, it goes on from the saved state."""


@dataclass
class TrainingState:
    """Keeps all that an unfinished stage needs to go on after an interruption as if there had been none.

    key: what the stage depends on; a state under another key is not taken up.  cost: of the stage before the
    interruption.  deadline: on the clock of time.monotonic; the first state saved after it ends the piece.
    """

    path: Path
    key: str
    resume: bool
    cost: Cost = field(default_factory=Cost)
    deadline: float = math.inf

    def save(
        self, step: int, modules: Mapping[str, nn.Module | None], optimizer: torch.optim.Optimizer, cost: Cost
    ) -> None:
        """Writes the state after `step` steps; modules by name, None for one that the stage has not.

        cost: of the steps since the interruption.  Raises PieceOver once the deadline is over.
        """
        content = {
            "key": self.key,
            "step": step,
            "modules": {name: m.state_dict() for name, m in modules.items() if m is not None},
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cost": dataclasses.asdict(self.cost + cost),
        }
        write_atomically(self.path, lambda partial: _save(content, partial))
        end_piece(self.deadline)

    def restore(self, modules: Mapping[str, nn.Module | None], optimizer: torch.optim.Optimizer) -> int:
        """The step to go on from: 0, or that of a saved state, which is then loaded."""
        if not self.resume or not self.path.exists():
            return 0
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        if content["key"] != self.key:
            return 0
        for name, module in modules.items():
            if module is not None:
                module.load_state_dict(content["modules"][name])
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["rng"])
        self.cost += Cost(**content["cost"])
        return int(content["step"])

    def clear(self) -> None:
        """Removes the state once the stage's weights are written."""
        self.path.unlink(missing_ok=True)


def _save(content: Mapping[str, object], path: Path) -> None:
    """By a file that Python opens, whose error is raised: PyTorch's own says nothing of a full disk."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def saved_key(path: Path) -> str | None:
    """The key under which a state is saved; None if there is none."""
    return str(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["key"]) if path.exists() else None


def end_piece(deadline: float) -> None:
    """Raises PieceOver if a deadline on time.monotonic's clock is over."""
    if time.monotonic() > deadline:
        raise PieceOver
