"""Pixel contrast of csrc/cuda, emulated on the CPU, against the reference in double precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_operators import CONTRAST_SHAPES, DTYPES, generator, random, within_budget
from torch import Tensor

from sskd_fast.ops._library import with_types_of_errors
from sskd_fast.reference import pixel_contrast as reference

TEMPERATURE = torch.tensor([0.2], dtype=torch.float64)
# Rows of several parts; a candidate that many anchors use; more than 32 negatives for wide rows.
SHAPES = [*CONTRAST_SHAPES, (3, 5, 4, 600), (70, 2, 3, 8), (2, 9, 70, 200)]


def case(a: int, m: int, r: int, d: int, scale: float = 1) -> tuple[list[Tensor], Tensor]:
    negatives = torch.randint(-1, m, (a, r), generator=generator(a, m, r))
    return [scale * random(a, d), scale * random(a, d, seed=1), scale * random(m, d, seed=2)], negatives


def everything(
    run: Any,
    embeddings: list[Tensor],
    negatives: Tensor,
    margin: float | None = None,
    normalize: bool = True,
    temperature: Tensor = TEMPERATURE,
) -> list[Tensor]:
    """Losses and the gradients of the embeddings, in their dtype; the reference computes half precision in float32."""
    dtype = embeddings[0].dtype
    if run is reference and dtype.itemsize == 2:
        embeddings = [x.float() for x in embeddings]
    loss, *state = run.pixel_contrast(*embeddings, negatives, temperature, margin, normalize, True)
    grad = random(*loss.shape, seed=5).to(loss.dtype)
    arguments = *embeddings, negatives, *state, temperature, normalize, True, True
    return [loss, *(x.to(dtype) for x in run.pixel_contrast_backward(grad, *arguments))]


def check(run: Any, embeddings: list[Tensor], dtype: torch.dtype, *rest: Any) -> None:
    rounded = [x.to(dtype) for x in embeddings]
    exact = everything(reference, [x.double() for x in rounded], *rest)
    for each in zip(everything(run, rounded, *rest), everything(reference, rounded, *rest), exact, strict=True):
        within_budget(*each)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("margin", "normalize"), [(None, True), (0.1, True), (0.1, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients_keep_the_error_budget(emulated, shape, margin, normalize, dtype):
    embeddings, negatives = case(*shape, scale=1 if normalize else 1 / math.sqrt(shape[-1]))
    check(emulated, embeddings, dtype, negatives, margin, normalize)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_the_threads_changes_no_bit(emulated_library, dtype):
    embeddings, negatives = case(65, 33, 17, 40)
    results = []
    for order in (0, 0, 1, 7):
        emulated_library.order_threads(order)
        results.append(everything(emulated_library, [x.to(dtype) for x in embeddings], negatives, 0.1))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_large_logits_do_not_overflow(emulated):
    embeddings, negatives = case(9, 8, 20, 16)
    temperature = torch.tensor([1e-3], dtype=torch.float64)
    check(emulated, embeddings, torch.float32, negatives, None, True, temperature)


def test_rows_of_zeros_count_as_of_the_least_norm(emulated):
    embeddings, negatives = case(5, 4, 6, 8)
    for rows in embeddings:
        rows[1] = 0
    found, wanted = (everything(run, embeddings, negatives) for run in (emulated, reference))
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y)
    assert float(found[1][1].abs().max()) > 1e9  # the gradient of a row of norm 0, divided by 1e-12


def test_only_wanted_gradients_are_computed(emulated):
    embeddings, negatives = case(7, 13, 5, 3)
    loss, share, pull, pulled = emulated.pixel_contrast(*embeddings, negatives, TEMPERATURE, 0.1, True, True)
    alone = emulated.pixel_contrast(*embeddings, negatives.int(), TEMPERATURE, 0.1, True, False)
    assert torch.equal(alone[0], loss) and torch.equal(alone[2], pull)
    assert alone[1].shape == (0, 5) and alone[3].shape == (0, 3)
    arguments = loss, *embeddings, negatives, share, pull, pulled, TEMPERATURE, True
    every = emulated.pixel_contrast_backward(*arguments, True, True)
    least = emulated.pixel_contrast_backward(*arguments, False, False)
    assert torch.equal(least[0], every[0]) and least[1].shape == (0, 3) and least[2].shape == (0, 3)


def test_rows_off_the_grid_of_16_bytes_and_strided_ones_give_the_same(emulated):
    embeddings, negatives = case(7, 13, 5, 16)
    plain = everything(emulated, embeddings, negatives)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in embeddings]
    strided = [x.t().contiguous().t() for x in embeddings]
    assert shifted[0].data_ptr() % 16 != 0 and not strided[0].is_contiguous()
    for moved in (shifted, strided):
        found = everything(emulated, moved, negatives.t().contiguous().t())
        assert all(torch.equal(x, y) for x, y in zip(plain, found, strict=True))


@pytest.mark.parametrize(("a", "m", "r"), [(0, 3, 2), (3, 0, 2), (3, 5, 0), (0, 0, 0)])
def test_nothing_in_gives_nothing_out(emulated, a, m, r):
    negatives = torch.full((a, r), -1)
    embeddings = [random(n, 4).float() for n in (a, a, m)]
    loss, *grads = everything(emulated, embeddings, negatives)
    assert torch.equal(loss, torch.zeros(a))
    assert all(torch.equal(x, torch.zeros_like(y)) for x, y in zip(grads, embeddings, strict=True))


@pytest.mark.parametrize("wrong", [-2, 5, (1 << 32) + 1, -(1 << 32)])
def test_an_index_out_of_range_stops_the_kernel(emulated, wrong):
    embeddings, negatives = case(3, 5, 2, 4)
    negatives[2, 1] = wrong
    with pytest.raises(RuntimeError, match="__trap"):
        emulated.pixel_contrast(*embeddings, negatives, TEMPERATURE, None, True, True)


def test_a_temperature_that_the_kernels_cannot_read_is_named(emulated):
    embeddings, negatives = case(3, 5, 2, 4)
    with pytest.raises(ValueError, match=r"temperature: found 1 of Float on cpu, expected one float64 on cpu"):
        with_types_of_errors(emulated.pixel_contrast)(*embeddings, negatives, torch.tensor([0.2]), None, True, True)
