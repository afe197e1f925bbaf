"""Photometric transforms with given parameters, each a few tensor operations.

Shape letters: H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
_LUMA = torch.tensor(LUMA)


def color_twist(
    image: Tensor, *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """Applies brightness, contrast, saturation and hue, in this order, as one affine map of the colours.

    image: (3, H, W) float32 in [0, 1].  brightness, contrast, saturation: factors, 1 for no change.  Contrast blends
    with the mean luma of the image and saturation with the luma of each pixel, as in torchvision.  hue: a rotation
    about the grey axis, in turns.  It keeps greys, and a third of a turn permutes the channels, as in HSV; unlike HSV
    it is linear.  Returns a new tensor, clamped to [0, 1] once, at the end.
    """
    flat = image.reshape(3, -1)
    mean_luma = brightness * float(_LUMA @ flat.mean(dim=1))
    gain = brightness * contrast
    colors = [
        [gain * (saturation * turned + (1.0 - saturation) * luma) for turned, luma in zip(row, LUMA, strict=True)]
        for row in hue_rotation(hue)
    ]
    twisted = torch.mm(torch.tensor(colors), flat).add_((1.0 - contrast) * mean_luma)
    return twisted.clamp_(0.0, 1.0).view(image.shape)


def hue_rotation(turns: float) -> list[list[float]]:
    """The 3 x 3 rotation of RGB colours about the grey axis; 1/3 of a turn maps red to green and green to blue."""
    angle = 2.0 * math.pi * turns
    along = (1.0 - math.cos(angle)) / 3.0
    across = math.sin(angle) / math.sqrt(3.0)
    diagonal = math.cos(angle) + along
    return [
        [diagonal, along - across, along + across],
        [along + across, diagonal, along - across],
        [along - across, along + across, diagonal],
    ]


def to_grey(image: Tensor) -> Tensor:
    """The luma of (3, H, W) on all three channels, as a new tensor of the same shape."""
    return torch.tensordot(_LUMA, image, dims=1).expand(3, -1, -1).contiguous()


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a 5 x 5 kernel and reflected borders.

    image: (3, H, W) float32 with H, W >= 3.  sigma: standard deviation in pixels, above 0.
    """
    near, far = math.exp(-0.5 / sigma**2), math.exp(-2.0 / sigma**2)
    total = 1.0 + 2.0 * near + 2.0 * far
    centre, near, far = 1.0 / total, near / total, far / total
    padded = functional.pad(image[None], (2, 2, 2, 2), mode="reflect")[0]
    rows = padded[:, 2:-2] * centre
    rows.add_(padded[:, 1:-3] + padded[:, 3:-1], alpha=near).add_(padded[:, :-4] + padded[:, 4:], alpha=far)
    blurred = rows[:, :, 2:-2] * centre
    blurred.add_(rows[:, :, 1:-3] + rows[:, :, 3:-1], alpha=near)
    return blurred.add_(rows[:, :, :-4] + rows[:, :, 4:], alpha=far)
