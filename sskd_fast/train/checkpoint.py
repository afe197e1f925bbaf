"""The state of an unfinished stage, from which it resumes after an interruption; written whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from sskd_fast import ranks
from sskd_fast.files import write_atomically
from sskd_fast.train.cost import Cost
from sskd_fast.train.random_state import RandomState
from sskd_fast.train.sharding import gathered_state, shard_of, sharded_state

# Module whose state differs between ranks, like the random states: the memory bank of the contrastive loss.
_OWN = "contrast"


class HasState(Protocol):
    """An object with a state to save, such as a module or a scaler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class PieceOver(Exception):
    """Raised once the time for one piece of a run is over; the run can resume from the saved state."""


@dataclass
class TrainingState:
    """The saved state of an unfinished stage, with which a resumed stage gives the same result as an uninterrupted one.

    key: hash of all that the stage depends on; a state under another key is ignored.  cost: of the stage before the
    interruption.  deadline: on the clock of time.monotonic; the first save after it ends the piece.
    All ranks save and restore together; the first rank owns the file.
    """

    path: Path
    key: str
    resume: bool
    cost: Cost = field(default_factory=Cost)
    deadline: float = math.inf

    def save(
        self, step: int, modules: Mapping[str, HasState | None], optimizer: torch.optim.Optimizer, cost: Cost
    ) -> None:
        """Writes the state after `step` steps; modules by name, None for a module that the stage lacks.

        cost: of the steps since the interruption.  Raises PieceOver once the deadline is over.
        """
        own, random = modules.get(_OWN), RandomState.now()
        kept = None if own is None or ranks.number() == 0 else own.state_dict()
        others = ranks.gathered({"rng": random.cpu, "cuda_rng": random.cuda, _OWN: kept})[1:]
        states = gathered_state({name: m.state_dict() for name, m in modules.items() if m is not None})
        moments = gathered_state(optimizer.state_dict())
        if ranks.number() == 0:
            content = {
                "key": self.key, "step": step, "modules": states, "optimizer": moments, "rng": random.cpu,
                "cuda_rng": random.cuda, "others": others, "cost": dataclasses.asdict(self.cost + cost),
            }  # fmt: skip
            write_atomically(self.path, lambda partial: _save(content, partial))
        if ranks.from_first(time.monotonic() > self.deadline):
            raise PieceOver

    def restore(self, modules: Mapping[str, HasState | None], optimizer: torch.optim.Optimizer) -> int:
        """Loads the saved state, if there is one, and returns the step to resume from, else 0.

        A rank that is missing in the saved state keeps its own random state.
        """
        content = ranks.from_first(self._saved())
        if content is None:
            return 0
        for name, module in modules.items():
            if module is not None:
                own_state, saved = module.state_dict(), content["modules"][name]
                module.load_state_dict({key: shard_of(value, own_state.get(key)) for key, value in saved.items()})
        optimizer.load_state_dict(sharded_state(content["optimizer"], optimizer))
        known = [content, *content.get("others", [])]
        if ranks.number() < len(known):
            own = known[ranks.number()]
            RandomState(own["rng"], own.get("cuda_rng")).restore()
            if ranks.number() and (module := modules.get(_OWN)) is not None:
                module.load_state_dict(own[_OWN])
        self.cost += Cost(**content["cost"])
        return int(content["step"])

    def _saved(self) -> dict[str, Any] | None:
        """The state in the first rank's file; None if there is none to resume from."""
        if ranks.number() or not self.resume or not self.path.exists():
            return None
        content: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        return content if content["key"] == self.key else None

    def clear(self) -> None:
        """Removes the state once the stage's weights are written."""
        self.path.unlink(missing_ok=True)


def _save(content: Mapping[str, object], path: Path) -> None:
    """Save through a file that Python opens: PyTorch's own error does not mention a full disk."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def saved_key(path: Path) -> str | None:
    """The key of a saved state; None if there is no state."""
    return str(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["key"]) if path.exists() else None


def end_piece(deadline: float) -> None:
    """Raises PieceOver if a deadline on time.monotonic's clock is over."""
    if time.monotonic() > deadline:
        raise PieceOver
