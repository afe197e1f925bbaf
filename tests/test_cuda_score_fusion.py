"""Score fusion of csrc/cuda, emulated on the CPU, against the reference in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_operators import CUES, FUSION_SHAPES, random, within_budget
from torch import Tensor

from sskd_fast.ops._library import with_types_of_errors
from sskd_fast.reference import score_fusion as reference

# One tile of pixels and one past it; planes of whole packs of 16 bytes; squares of queries and classes; wide rows.
TILES = [(1, 4, 3, 4, 8, None), (2, 3, 2, 3, 11, None), (1, 40, 33, 4, 5, (9, 2)), (1, 300, 40, 2, 9, None)]


def everything(
    run: Any, grad: Tensor, masks: Tensor, classes: Tensor, size: tuple[int, int], cues: str
) -> list[Tensor]:
    """Scores and both gradients, of the emulated operators or of the reference."""
    arguments = masks, classes, *size, reference.CUES.index(cues)
    return [run.score_fusion(*arguments), *run.score_fusion_backward(grad, *arguments)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cues", CUES)
@pytest.mark.parametrize("shape", [*FUSION_SHAPES, *TILES], ids=str)
def test_values_and_gradients_keep_the_error_budget(emulated, shape, cues, dtype):
    b, k, c, h, w, size = shape
    size = size or (h, w)
    masks, classes = (3 * random(b, k, h, w)).to(dtype), (2 * random(b, k, c + 1)).to(dtype)
    width = {"mask": k, "class": c + 1}.get(cues, k + c + 1)
    grad = random(b, size[0] * size[1], width, seed=5).to(dtype)
    exact = everything(reference, grad.double(), masks.double(), classes.double(), size, cues)
    same_dtype = everything(reference, grad, masks, classes, size, cues)
    found = everything(emulated, grad, masks, classes, size, cues)
    for each in zip(found, same_dtype, exact, strict=True):
        within_budget(*each)


def test_objects_that_cover_a_pixel_more_than_whole_leave_no_background(emulated):
    """sum_k P_o[k] > 1: the background is clamped and has no gradient."""
    masks, classes = torch.full((1, 3, 2, 2), 4.0), torch.zeros(1, 3, 3)
    classes[..., -1] = -3
    grad = random(1, 4, 6).float()
    found = everything(emulated, grad, masks, classes, (2, 2), "object")
    assert torch.equal(found[0][..., 3], torch.zeros(1, 4))
    for x, y in zip(found, everything(reference, grad, masks, classes, (2, 2), "object"), strict=True):
        torch.testing.assert_close(x, y)


def test_tensors_off_the_grid_of_16_bytes_and_strided_ones_give_the_same(emulated):
    masks, classes, grad = random(1, 3, 4, 8).float(), random(1, 3, 3).float(), random(1, 32, 6).float()
    plain = everything(emulated, grad, masks, classes, (4, 8), "fused")
    shifted = torch.cat([masks.new_zeros(1), masks.flatten()])[1:].view(masks.shape)
    strided = grad.transpose(1, 2).contiguous().transpose(1, 2)
    assert shifted.data_ptr() % 16 != 0 and not strided.is_contiguous()
    moved = everything(emulated, strided, shifted, classes, (4, 8), "fused")
    assert all(torch.equal(x, y) for x, y in zip(plain, moved, strict=True))


def test_nothing_in_gives_nothing_out(emulated):
    arguments = torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 2), 4, 4, 0
    assert emulated.score_fusion(*arguments).shape == (0, 16, 5)
    grads = emulated.score_fusion_backward(torch.zeros(0, 16, 5), *arguments)
    assert [x.shape for x in grads] == [(0, 3, 4, 4), (0, 3, 2)]


def test_rows_too_wide_for_shared_memory_are_refused(emulated):
    message = "class_logits: found 3000 queries and 2 classes, expected at most 1350 together"
    with pytest.raises(ValueError, match=message):
        with_types_of_errors(emulated.score_fusion)(torch.zeros(1, 3000, 1, 1), torch.zeros(1, 3000, 2), 1, 1, 0)
