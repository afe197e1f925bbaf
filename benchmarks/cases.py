"""The sizes to time, their inputs, and the operators of one training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sskd_fast import ops

QUERIES, CLASSES, WIDTH, NEGATIVES, TEMPERATURE = 100, 8, 128, 200, 0.2


@dataclass(frozen=True)
class Case:
    """B images of height x width pixels, each pixel an anchor and a candidate.

    sharpness: standard deviation of the logits; 4 as in a trained model, 1 for scores that are nearly alike.
    """

    images: int
    height: int
    width: int
    sharpness: float = 4.0

    @property
    def pixels(self) -> int:
        return self.images * self.height * self.width

    @property
    def name(self) -> str:
        flat = "" if self.sharpness == 4.0 else f"-sharpness{self.sharpness:g}"
        return f"{self.images}x{self.height * self.width}{flat}"

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mask logits (B, K, h, w), class logits (B, K, C+1), embeddings of both views (N, D), the first with gradient.

        The same values on every device.
        """
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        masks = self.sharpness * normal(self.images, QUERIES, self.height, self.width)
        classes = self.sharpness * normal(self.images, QUERIES, CLASSES + 1)
        weak = normal(self.pixels, WIDTH)
        strong = weak + 0.5 * normal(self.pixels, WIDTH)
        masks, classes, weak, strong = (x.to(device, dtype) for x in (masks, classes, weak, strong))
        return masks, classes, weak.requires_grad_(), strong


COARSE, MIDDLE, FINE = Case(8, 19, 37), Case(2, 64, 64), Case(2, 128, 256)
CASES = {case.name: case for case in (COARSE, MIDDLE, FINE)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def scores_of(case: Case, dtype: torch.dtype = torch.float32) -> Tensor:
    """Score vectors (N, E) of the case's logits."""
    masks, classes, _, _ = case.inputs(dtype)
    return ops.fuse_scores(masks, classes).flatten(0, 1)


def operators_step(masks: Tensor, classes: Tensor, weak: Tensor, strong: Tensor, backend: str) -> None:
    """Fuse, sample and contrast, forward and backward."""
    scores = ops.fuse_scores(masks, classes, backend=backend).flatten(0, 1)
    drawn = ops.sample_negatives(scores, scores, NEGATIVES, seed=1, backend=backend)
    ops.pixel_contrast(weak, strong, weak, drawn, TEMPERATURE, backend=backend).backward()
    weak.grad = None
