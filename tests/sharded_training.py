"""Three steps of a training by the ranks that torchrun starts: sharded_training.py FOLDER.

Parameters are sharded if accelerate's settings say so.  Written by each rank: the average of a training in one go, of
one resumed from the state after two steps, of one in micro batches, of one with few strong views, and of a model of
another kind; and in how many parts parameters are.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from joint_gradients import images_of_step, model_and_objective, of_step
from torch import Tensor
from torch.distributed.tensor import DTensor

from sskd_fast import _env, ranks
from sskd_fast.data.instances import Batch
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.settings import FoundationConfig, ModelConfig
from sskd_fast.train.checkpoint import TrainingState
from sskd_fast.train.loop import train
from sskd_fast.train.progress import Progress, SilentLog
from sskd_fast.train.schedule import Schedule, StageConfig, TrainConfig

SCHEDULE = Schedule(TrainConfig(lr=1e-3, save_every=2), StageConfig(steps=3))


def weights(
    state: TrainingState, micro_batch: int = 0, kind: str = "mask_transformer", strong_every: int = 1
) -> dict[str, Tensor]:
    """The moving average after three steps, from a state on if it holds any; "parts": of the largest parameter."""
    model, objective = model_and_objective(kind, "paper", share=0, strong_every=strong_every)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def draw(step: int) -> Iterator[tuple[Batch, Batch | None]]:
        return (images_of_step(number) for number in range(step, SCHEDULE.steps))

    schedule = Schedule(dataclasses.replace(SCHEDULE.train, micro_batch=micro_batch), SCHEDULE.budget)
    progress = Progress(SilentLog(), "stage", "", 1, {})
    average = train(model, objective, draw, schedule, state, progress, None, seed=0)
    largest = max(model.parameters(), key=Tensor.numel)
    own = largest.to_local() if isinstance(largest, DTensor) else largest
    return {**average.state_dict(), "parts": torch.tensor(largest.numel() / own.numel())}


def universal_gradients(folder: Path) -> None:
    """Writes loss and gradients of a step of each model of transformers there, of the joint batch of all ranks."""
    if _env.world_size() > 1:
        ranks.meet(cuda=False)
    found = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        _, objective = model_and_objective("mask_transformer", "paper", share=0)
        torch.manual_seed(0)
        config = ModelConfig(kind="universal", embedding=6, foundation=FoundationConfig(universal=str(place)))
        found[place.name] = of_step(build_segmenter(config, ["a", "b", "c"]), objective)
    torch.save(found, folder / f"gradients-{ranks.number() if _env.world_size() > 1 else 'alone'}.pt")


def main(folder: Path) -> None:
    """Writes the weights of all trainings."""
    torch.set_default_dtype(torch.float64)
    if _env.world_size() > 1:
        ranks.meet(cuda=False)
    path = folder / "state.pt"
    found = {
        "straight": weights(TrainingState(path, "key", resume=False)),
        "resumed": weights(TrainingState(path, "key", resume=True)),
        "in micro batches": weights(TrainingState(folder / "other.pt", "key", resume=False), micro_batch=3),
        "few strong views": weights(
            TrainingState(folder / "few.pt", "key", resume=False), micro_batch=1, strong_every=5
        ),
        "of another kind": weights(TrainingState(folder / "dense.pt", "key", resume=False), kind="dense"),
    }
    torch.save(found, folder / f"{ranks.number()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
