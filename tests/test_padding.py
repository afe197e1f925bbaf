"""Zeros that pad an image to the size of a tile: what counts as padding, and that no query is taken from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sskd_fast.models.build import build_segmenter
from sskd_fast.models.dense import DenseSegmenter
from sskd_fast.models.inference import InferenceConfig, predict
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.padding import NOTHING, Content
from sskd_fast.models.settings import ModelConfig


def padded() -> Tensor:
    """Two images of 64 x 64 pixels: the first ends after 40 rows, the second after 23 columns."""
    torch.manual_seed(0)
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, :40] = torch.rand(3, 40, 64).clamp(min=0.1)
    images[1, :, :, :23] = torch.rand(3, 64, 23).clamp(min=0.1)
    return images


def test_content_ends_with_the_last_row_and_column_that_is_not_black() -> None:
    images = padded()
    images[0, :, 10] = 0.0  # a black row within
    images[1, :2, :, 22] = 0.0  # only the third channel is left of the last column
    assert Content.of(images).sides.tolist() == [[40, 64], [64, 23]]
    assert Content.of(torch.zeros(1, 3, 8, 4)).sides.tolist() == [[0, 0]]
    assert Content.of(torch.ones(1, 3, 8, 4)).sides.tolist() == [[8, 4]]


def test_cells_are_inside_if_their_centres_are() -> None:
    content = Content(torch.tensor([[5, 8], [6, 3]]), (8, 8))
    inside = content.cells((4, 2))  # centres at rows 1, 3, 5, 7 and columns 2, 6
    assert inside[0].tolist() == [[True, True], [True, True], [False, False], [False, False]]
    assert inside[1].tolist() == [[True, False], [True, False], [True, False], [False, False]]
    logits = torch.ones(2, 3, 4, 2)
    kept = content.only(logits)
    assert bool((kept[0, :, :2] == 1).all()) and bool((kept[0, :, 2:] == NOTHING).all())
    assert torch.equal(content.only(logits[:, 0]), kept[:, 0])


def loud_in_padding(module: torch.nn.Module) -> None:
    """Makes a layer's maps of `padded` 5 in the padding and -5 elsewhere, all cells a little different."""

    def hook(_: torch.nn.Module, __: tuple[Tensor, ...], found: Tensor) -> Tensor:
        height, width = found.shape[-2:]
        maps = torch.full_like(found, -5.0)
        maps[0, :, height * 40 // 64 :], maps[1, :, :, -(-width * 23 // 64) :] = 5.0, 5.0
        return maps + torch.linspace(0, 0.1, height * width).view(height, width)

    module.register_forward_hook(hook)


TINY: dict[str, Any] = {
    "channels": (8, 8, 8), "blocks": (1, 1, 1), "width": 16, "mask_width": 8, "layers": 1, "num_queries": 20,
}  # fmt: skip


def test_dense_queries_come_from_the_image() -> None:
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig(kind="dense", **TINY), ["a", "b"]).eval()
    assert isinstance(model, DenseSegmenter)
    loud_in_padding(model.head.classes)
    images = padded()
    with torch.no_grad():
        scores = model.class_probs(model(images))
        assert (
            float(model.class_probs(model.decode(model.encode(images))).max()) > 0.9
        )  # the padding's, if not left out
    assert scores.shape == (2, 20, 2) and float(scores.max()) < 0.01
    assert float(scores.min()) > 0.005  # there are enough cells inside


def test_peaks_come_from_the_image() -> None:
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig(kind="mask_transformer", **TINY), ["a", "b"]).eval()
    assert isinstance(model, MaskTransformer)
    loud_in_padding(model.queries.heat)
    points: list[Tensor] = []
    model.queries.register_forward_hook(lambda _, __, found: points.append(found.points))
    images = padded()
    with torch.no_grad():
        model(images)
        model.decode(model.encode(images))
    inside, anywhere = ((place + 0.5) * model.stride for place in points)
    assert bool((inside[0, :, 1] < 40).all()) and bool((inside[1, :, 0] < 23).all())
    assert bool((anywhere[0, :, 1] > 40).all()) and bool((anywhere[1, :, 0] > 23).all())


@pytest.mark.parametrize("size", [(40, 64), (64, 23), (3, 64)])
def test_prediction_pads_with_zeros(size: tuple[int, int]) -> None:
    """The tile of a small image has its content where the model looks for it."""
    seen: list[Tensor] = []
    model = build_segmenter(ModelConfig(kind="dense", **TINY), ["a"])
    model.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    image = torch.randint(1, 256, (3, *size), dtype=torch.uint8)
    predict(model, [image], InferenceConfig(tile=(64, 64)))
    assert Content.of(seen[0]).sides.tolist() == [list(size)]
