"""The engine of a training: how images lie in memory, and how many of them it sees at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from joint_gradients import images_of_step, model_and_objective, short_of_memory
from torch import Tensor, nn

from sskd_fast.method import STAGE
from sskd_fast.train.engine import Engine

if TYPE_CHECKING:
    from sskd_fast.run.models import RunModels


@pytest.mark.parametrize("stage", ["supervised_teacher", "distilled_student"])
def test_weights_and_maps_are_channels_last(untrained_run: RunModels, stage: str) -> None:
    model = untrained_run.start(STAGE[stage])
    inner = [m for m in model.modules() if isinstance(m, nn.Conv2d) and min(m.in_channels, m.out_channels) > 1]
    maps: list[Tensor] = []
    for convolution in inner:
        convolution.register_forward_hook(lambda _, inputs, output: maps.append(output))
    model.embed(model.encode(torch.rand(2, 3, 64, 96)))
    tensors: list[Any] = [*maps, *(m.weight for m in inner)]
    assert len(maps) > 10
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


def test_the_micro_batch_is_halved_until_there_is_memory() -> None:
    """Twelve images a step and memory for two; the search changes nothing else, and the step has the same gradients."""
    model, objective = model_and_objective("mask_transformer", "paper")
    engine = Engine(model, objective, torch.optim.SGD(model.parameters(), lr=0.1))
    whole = engine.gradients(images_of_step(0), 0.4, 3).loss
    expected = {name: p.grad for name, p in model.named_parameters()}
    short_of_memory(model, 2)
    random, buffers = torch.get_rng_state(), {name: buffer.clone() for name, buffer in engine.plain.named_buffers()}
    engine.find_micro_batch(images_of_step(0), 0.4, 3)
    assert engine.micro_batch == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in engine.plain.named_buffers())
    assert all(p.grad is None for p in model.parameters())
    assert float(engine.gradients(images_of_step(0), 0.4, 3).loss) == pytest.approx(float(whole), rel=1e-5)
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_no_memory_for_one_image_is_said() -> None:
    model, objective = model_and_objective("mask_transformer", "paper")
    short_of_memory(model, 0)
    engine = Engine(model, objective, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 1 images"):
        engine.find_micro_batch(images_of_step(0), 0.4, 3)
