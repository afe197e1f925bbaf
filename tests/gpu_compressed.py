"""Score vectors in bytes: the bounds that settle trials hold for every pair, and are close.

On a GPU, else in Triton's interpreter on the CPU; test_gpu_steps.py runs them.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch
import triton
import triton.language as tl
from on_device import DEVICE, on_device
from test_operators import random, sampling_case
from torch import Tensor

from sskd_fast import kernels

pytestmark = pytest.mark.usefixtures("on_the_device")
_compressed = importlib.import_module(f"{kernels.__name__}._compressed")
_tl = importlib.import_module(f"{kernels.__name__}._tl")
_tuning = importlib.import_module(f"{kernels.__name__}._tuning")
bounds, own_layers = _compressed.bounds, _compressed.own_layers
BLOCK = 32


@triton.jit
def bounds_kernel(
    layers_ptr, headers_ptr, coarse_ptr, fine_ptr, own_headers_ptr, low_ptr, high_ptr, size,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK_K: tl.constexpr, PRODUCTS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    anchor, q = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    own = own_layers(coarse_ptr, fine_ptr, anchor, tl.arange(0, BLOCK_K), WIDTH, STRIDE, PRODUCTS)
    low, high = bounds(
        layers_ptr, headers_ptr, tl.minimum(q, size - 1), coarse_ptr, fine_ptr, own, own_headers_ptr, anchor, WIDTH,
        STRIDE, BLOCK_K, PRODUCTS,
    )  # fmt: skip
    tl.store(low_ptr + anchor * size + q, low, mask=q < size)
    tl.store(high_ptr + anchor * size + q, high, mask=q < size)


def bounds_of(anchors: Tensor, scores: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (A, M) on the score of every pair."""
    rows, candidates = _tl.padded_rows(anchors), _tl.padded_rows(scores)
    middle = torch.nn.functional.pad(centre, (0, rows.shape[1] - centre.shape[1]))
    coarse, fine = _compressed.compress(rows, middle, True)
    other, _ = _compressed.compress(candidates, middle, False)
    low, high = torch.full((2, len(rows), len(scores)), -1.0, dtype=torch.float64, device=rows.device)
    tuning = {**_tuning.sampling_trials(rows.shape[1]), "BLOCK_T": BLOCK}
    bounds_kernel[(len(rows), triton.cdiv(len(scores), BLOCK))](
        *other, coarse.layers, *fine, low, high, len(scores), WIDTH=rows.shape[1],
        **{key: value for key, value in tuning.items() if key != "BLOCK_HELD"},
    )  # fmt: skip
    return low, high


def exact(anchors: Tensor, scores: Tensor) -> Tensor:
    return (anchors.double()[:, None] - scores.double()).square().sum(2) / 2


# A part of a block, several blocks, one past a block, and rows of less than a sector.
@pytest.mark.parametrize("width", [2, 9, 109, 128, 300])
@pytest.mark.parametrize("kind", ["fused", "peaked", "alike"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds_hold_and_are_close(kind, width, dtype):
    anchors, scores = on_device(*sampling_case(5, 67, width, kind, dtype))
    centre = scores.double().mean(0, keepdim=True)
    low, high = bounds_of(anchors, scores, centre)
    wanted = exact(anchors, scores)
    assert bool((low <= wanted).all()) and bool((wanted <= high).all())
    own, others = ((x.double() - centre).square().sum(1) for x in (anchors, scores))
    squares = own[:, None] + others
    # A row is off by half a unit a number at most, a unit is 1/127 of the largest; the anchor's second layer is exact.
    assert float(((high - low) / squares).max()) < math.sqrt(width) / 127 + 1e-3


def test_rows_without_a_bound_are_left_to_the_exact_score():
    """Rows at the centre, next to nothing from it, and not finite: no trial with them is settled."""
    scores = random(6, 20).abs().float()
    scores[0], scores[1] = 0, scores[1] * 1e-20
    scores[2, 3], scores[3, 4] = math.nan, math.inf
    rows, centre = on_device(scores, torch.zeros(1, 20, dtype=torch.float64))
    low, high = bounds_of(rows, rows, centre)
    settled = (low > 0) | high.isfinite()
    assert not bool(settled[:4].any()) and not bool(settled[:, :4].any())
    assert bool(settled[4:, 4:].all())


def test_the_second_layer_halves_the_error():
    """The header of the fine layer holds what both leave, and both layers together give the row back."""
    rows = on_device(random(7, 24).float())[0]
    coarse, fine = _compressed.compress(rows, torch.zeros(1, 24, dtype=torch.float64, device=DEVICE), True)
    header = coarse.headers[:, -3:]
    torch.testing.assert_close(header[:, 1], rows.norm(dim=1))
    whole = (coarse.layers[:, :24].double() + fine.layers[:, :24].double() / 254) * header[:, :1].double()
    error = (whole - rows.double()).norm(dim=1)
    assert bool((error <= fine.headers[:, -1]).all()) and float((fine.headers[:, -1] / header[:, 2]).max()) < 0.02
    assert int(coarse.layers[:, :24].abs().amax(1).min()) == 127
