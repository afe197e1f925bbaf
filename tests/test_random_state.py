"""Random states come back: the same numbers are drawn after a restoration, with and without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sskd_fast.train.random_state import RandomState

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def drawn(device: str = "cpu") -> list[Tensor]:
    """Numbers of the three kinds that a training draws; normal ones come in pairs, of which one may be kept."""
    normal, uniform = torch.randn(3, device=device), torch.rand(3, device=device)
    return [normal, uniform, torch.randperm(50, device=device)]


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_restored_generators_draw_the_same_numbers_as_often_as_wanted() -> None:
    torch.manual_seed(3)
    torch.randn(1)
    state = RandomState.now()
    expected = drawn()
    for _ in range(2):
        assert not equal(drawn(), expected)
        state.restore()
        assert equal(drawn(), expected)


@needs_no_cuda
def test_a_state_of_a_machine_with_a_gpu_restores_the_cpu_of_one_without() -> None:
    assert RandomState.now().cuda is None
    cpu = torch.get_rng_state()
    expected = drawn()
    RandomState(cpu, torch.arange(16, dtype=torch.uint8)).restore()
    assert equal(drawn(), expected)
    assert not torch.cuda.is_initialized()


@needs_cuda
def test_restored_generators_of_a_gpu_draw_the_same_numbers() -> None:
    torch.cuda.init()
    state = RandomState.now()
    expected, expected_of_cpu = drawn("cuda"), drawn()
    assert not equal(drawn("cuda"), expected)
    state.restore()
    assert equal(drawn("cuda"), expected) and equal(drawn(), expected_of_cpu)


@needs_cuda
def test_a_state_of_a_machine_without_a_gpu_leaves_the_gpus_generator() -> None:
    torch.cuda.init()
    state = RandomState(torch.get_rng_state())
    before, expected = torch.cuda.get_rng_state(), drawn()
    state.restore()
    assert torch.equal(torch.cuda.get_rng_state(), before) and equal(drawn(), expected)
