"""Training under torch.compile: one graph each of the model's methods and the loss's parts, which steps share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from joint_gradients import images_of_step, model_and_objective
from torch._dynamo.utils import counters

from sskd_fast.data.instances import Batch
from sskd_fast.train.compiled import check_compiler, compile_training, without_graphs
from sskd_fast.train.engine import Engine
from sskd_fast.typed_settings import ConfigError


def crowded(batch: Batch, more: int) -> Batch:
    """The batch with each image's instances that many times over."""
    return replace(batch, targets=[t.select(torch.arange(len(t)).repeat(more)) for t in batch.targets])


def losses_of_steps(kind: str, backend: str) -> tuple[list[float], list[int]]:
    """J of steps that update the weights, and how many graphs there were after each."""
    model, objective = model_and_objective(kind, "paper")
    engine = Engine(model, objective, torch.optim.SGD(model.parameters(), lr=0.05), compiler=backend)
    assert engine.compiled == bool(backend)
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


@pytest.mark.parametrize("kind", ["dense", pytest.param("mask_transformer", marks=pytest.mark.slow)])
def test_capturing_leaves_the_parts_of_changing_size_alone_and_announces_every_pass(kind: str) -> None:
    """On a CPU nothing is captured; PyTorch says so for every graph."""
    from torch._inductor.cudagraph_trees import MarkStepBox

    torch._dynamo.reset()
    counters.clear()
    before = MarkStepBox.mark_step_counter
    losses, graphs = losses_of_steps(kind, "cudagraphs")
    assert before - MarkStepBox.mark_step_counter == 4  # one pass a step
    assert losses == pytest.approx(losses_of_steps(kind, "")[0], rel=1e-5)
    # encode and embed with gradient and without, decode.
    assert graphs == [5] * 4 and counters["inductor"]["cudagraph_skips"] >= 2


def test_more_numbers_of_images_than_pytorch_keeps_graphs_for() -> None:
    """Models of several stages, each with and without gradient, have more than the eight graphs of PyTorch's limit."""
    torch._dynamo.reset()
    # The second model finds the graphs of the first beside its own.
    for most in (9, 2):
        model, objective = model_and_objective("dense", "paper")
        assert compile_training(model, objective, "eager")
        for images in range(1, most + 1):
            assert len(model.embed(model.encode(torch.rand(images, 3, 32, 32)))) == images
        assert {"encode", "decode", "embed"} <= model.__dict__.keys()
        without_graphs(model)
        assert not {"encode", "decode", "embed"} & model.__dict__.keys()


def test_models_of_other_kinds_stay_as_they_are() -> None:
    model, objective = model_and_objective("dense", "paper")
    model.config = replace(model.config, kind="sam3")
    assert not compile_training(model, objective, "eager") and "encode" not in model.__dict__


def test_an_unknown_compiler_and_sharding_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.compile: found 'clang'; expected one of .*inductor"):
        check_compiler("clang", sharded=False)
    with pytest.raises(ConfigError, match=r"train.compile: found FSDP"):
        check_compiler("eager", sharded=True)
