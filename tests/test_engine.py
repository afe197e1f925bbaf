"""The engine of a training: how images lie in memory, how many of them it sees at once, and float16's scale."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

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


def scaled_engine(precision: Literal["float32", "float16"] = "float16") -> Engine:
    """An engine that scales the loss, of a model that computes in this precision."""
    model, objective = model_and_objective("mask_transformer", "paper", share=0.0)
    computed, model.config = replace(model.config, precision=precision), replace(model.config, precision="float16")
    engine = Engine(model, objective, torch.optim.AdamW(model.parameters(), lr=0.01))
    model.config = computed
    return engine


def set_scale(engine: Engine, scale: float) -> None:
    engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": scale})


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.plain.named_parameters()}


def take_step(engine: Engine) -> Tensor:
    """A step; returns the norm of its gradients."""
    engine.gradients(images_of_step(0), 0.4, 3)
    return engine.update(1.0)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_that_overflows_leaves_the_weights_and_halves_the_scale(
    precision: Literal["float32", "float16"],
) -> None:
    engine = scaled_engine(precision)
    set_scale(engine, 2.0**127)  # times a loss above 2, this is infinite
    before = weights(engine)
    assert not math.isfinite(take_step(engine))
    assert all(torch.equal(value, before[name]) for name, value in weights(engine).items())
    assert not engine.optimizer.state
    assert engine.scaler.get_scale() == 2.0**126
    set_scale(engine, 2.0**10)
    assert math.isfinite(take_step(engine))
    assert engine.scaler.get_scale() == 2.0**10
    assert any(not torch.equal(value, before[name]) for name, value in weights(engine).items())


def test_the_scale_of_the_loss_changes_no_bit_of_an_update() -> None:
    """In float32, since a power of two only moves the exponents of the gradients."""
    model, objective = model_and_objective("mask_transformer", "paper", share=0.0)
    plain = Engine(model, objective, torch.optim.AdamW(model.parameters(), lr=0.01))
    assert not plain.scaler.is_enabled()
    scaled = scaled_engine("float32")
    assert scaled.scaler.get_scale() == 2.0**16
    for _ in range(2):
        assert torch.equal(take_step(scaled), take_step(plain))
        expected = weights(plain)
        assert all(torch.equal(value, expected[name]) for name, value in weights(scaled).items())
