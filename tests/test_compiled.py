"""Training under torch.compile: one graph each of the model's methods and the loss's parts, which steps share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from joint_gradients import images_of_step, model_and_objective
from torch._dynamo.utils import counters

from sskd_fast.data.instances import Batch
from sskd_fast.train.compiled import compile_training
from sskd_fast.train.engine import Engine
from sskd_fast.typed_settings import ConfigError


def crowded(batch: Batch, more: int) -> Batch:
    """The batch with each image's instances that many times over."""
    return replace(batch, targets=[t.select(torch.arange(len(t)).repeat(more)) for t in batch.targets])


def losses_of_steps(kind: str, backend: str) -> tuple[list[float], list[int]]:
    """J of steps that update the weights, and how many graphs there were after each."""
    model, objective = model_and_objective(kind, "paper")
    if backend:
        compile_training(model, objective, backend)
    engine = Engine(model, objective, torch.optim.SGD(model.parameters(), lr=0.05))
    losses, graphs = [], []
    for step, more in enumerate((1, 2, 1, 3)):
        labeled, unlabeled = images_of_step(step)
        output = engine.gradients((crowded(labeled, more), unlabeled), step / 4, step)
        losses.append(float(output.loss))
        engine.update(1.0)
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, graphs


@pytest.mark.parametrize(
    ("kind", "backend"), [("dense", "eager"), pytest.param("mask_transformer", "aot_eager", marks=pytest.mark.slow)]
)
def test_compiled_steps_have_the_same_loss_from_the_same_graphs(kind: str, backend: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    losses, graphs = losses_of_steps(kind, backend)
    assert losses == pytest.approx(losses_of_steps(kind, "")[0], rel=1e-5)
    # encode and embed with gradient and without, decode; pair costs, mask terms, and heat terms of the first kind.
    assert graphs == [8 if kind == "mask_transformer" else 5] * 4
    assert not counters["graph_break"]


def test_an_unknown_compiler_and_sharding_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = model_and_objective("dense", "paper")
    with pytest.raises(ConfigError, match=r"train.compile: found 'clang'; expected one of .*inductor"):
        compile_training(model, objective, "clang")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"train.compile: found FSDP"):
        compile_training(model, objective, "eager")
