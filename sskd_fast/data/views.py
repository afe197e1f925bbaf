"""Two views of an image: weak (almost only geometry) and strong (the same geometry, changed colours).

The transforms are torchvision's ColorJitter, RandomGrayscale, GaussianBlur and ScaleJitter, drawn from one seed and
computed only on the crop.

Shape letters: H x W pixels of a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sskd_fast.data.instances import Instances, Sample
from sskd_fast.data.photometry import color_twist, gaussian_blur, to_grey
from sskd_fast.data.source import ImageSource


@dataclass(frozen=True)
class ViewsConfig:
    """Settings of views (section 3 of the method: flip, scale jitter and crop; colour changes for the strong view).

    size: height and width of a view, or one number for both; 0 = from the data (64 to 128 pixels).  scale: range of the
    zoom factor of the image's pixels.  With `fit`, it is relative to the zoom at which the whole image just fits the
    view (large-scale jitter, for images of many sizes).  hflip, vflip, rot90: flips and quarter turns, each drawn
    evenly (quarter turns need H = W).  weak_color: largest brightness and contrast change of the weak view, 0 for none.
    strong_color: largest change of brightness, contrast, saturation, hue.  grayscale: probability of a grey strong
    view. blur, blur_p: range of the standard deviation, probability.  noise: standard deviation of Gaussian noise on
    the strong view.  min_pixels: the losses ignore instances with fewer pixels in the view.  paste: probability that
    labelled instances of another view are pasted onto a view (see `copy_paste`).
    """

    size: int | tuple[int, int] = 0
    scale: tuple[float, float] = (0.8, 1.25)
    fit: bool = False
    hflip: bool = True
    vflip: bool = True
    rot90: bool = True
    weak_color: float = 0.2
    strong_color: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    grayscale: float = 0.2
    blur: tuple[float, float] = (0.1, 2.0)
    blur_p: float = 0.5
    noise: float = 0.0
    min_pixels: int = 12
    paste: float = 0.0

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width; 0 for a side that comes from the data."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def at_strength(self, strength: float) -> ViewsConfig:
        """Views with changes of zoom and weak colour scaled by `strength`: 0 for none, 1 for these settings.

        The limits of `scale` are raised to that power.
        """
        scale = (self.scale[0] ** strength, self.scale[1] ** strength)
        return replace(self, scale=scale, weak_color=min(1.0, strength * self.weak_color))

    def resolved(self, size: tuple[int, int], zoom: float) -> Views:
        """The views of size (H, W) for images scaled by `zoom`; with `fit`, only the size determines the zoom."""
        factor = 1.0 if self.fit else zoom
        scale = (self.scale[0] * factor, self.scale[1] * factor)
        own = {field.name: getattr(self, field.name) for field in fields(ViewsConfig)}
        return Views(**own | {"size": size, "scale": scale})


@dataclass(frozen=True)
class Views(ViewsConfig):
    """Settings of `ViewsConfig` with the size (H, W) and scale resolved.

    Raises ValueError for a setting out of range.
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.size) < 3:
            raise ValueError(f"size={self.size}: a view needs at least 3 x 3 pixels")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={self.scale}: expected 0 < smallest <= largest zoom factor")
        if self.rot90 and self.size[0] != self.size[1]:
            raise ValueError(f"rot90 with size={self.size}: quarter turns need square views; set rot90=False")
        if self.blur_p > 0 and not 0 < self.blur[0] <= self.blur[1]:
            raise ValueError(
                f"blur={self.blur}: expected 0 < smallest <= largest standard deviation; blur_p=0 for none"
            )
        if max(self.strong_color[:3]) > 1 or min(self.strong_color) < 0 or not 0 <= self.weak_color <= 1:
            raise ValueError(
                f"strong_color={self.strong_color}, weak_color={self.weak_color}: expected changes in [0, 1]"
            )


class _Draws:
    """Uniform draws from one seed, consumed in order, and a generator for noise."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self._values: Iterator[float] = iter(torch.rand(24, generator=self.generator).tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._values)

    def below(self, count: int) -> int:
        return min(int(next(self._values) * count), count - 1)

    def chance(self, probability: float) -> bool:
        return next(self._values) < probability

    def factor(self, change: float) -> float:
        return self.between(1.0 - change, 1.0 + change)


def draw_views(
    source: ImageSource, index: int, views: Views, generator_seed: int
) -> tuple[Tensor, Tensor, Tensor, Instances]:
    """Weak view, strong view, valid pixels and instances of one image; a pure function of `generator_seed`.

    Returns weak (3, H, W) float32 in [0, 1], strong likewise, valid (H, W) bool, and the instances with masks (n,
    H, W).  All have the geometry of both views.  valid is False on padding, crowd regions and instances too small
    to learn, which are left out.  Without labels there are no instances.
    """
    draws = _Draws(generator_seed)
    sample = _draw_window(source, index, views, draws)
    turn, flips = _draw_turn(views, draws)
    picture = _turned(sample.image, turn, flips).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
    strong = _strong_view(picture, views, draws)
    weak = _weak_view(picture, views, draws)
    corner = [draws.below(out - size + 1) for out, size in zip(views.size, picture.shape[1:], strict=True)]
    valid = torch.ones(picture.shape[1:], dtype=torch.bool)
    instances = sample.instances
    if instances is None:
        instances = Instances.empty(*picture.shape[1:])
    else:
        instances = replace(instances, masks=_turned(instances.masks, turn, flips).contiguous())
        unclear = instances.crowd | (instances.masks.flatten(1).sum(1) < views.min_pixels)
        if bool(unclear.any()):
            crowd, instances = instances.masks[unclear], instances.select(~unclear)
            valid = ~crowd.any(dim=0) | instances.masks.any(dim=0)
    weak, strong, valid, masks = (_placed(part, views.size, corner) for part in (weak, strong, valid, instances.masks))
    return weak, strong, valid, replace(instances, masks=masks)


def _draw_window(source: ImageSource, index: int, views: Views, draws: _Draws) -> Sample:
    """Draws a random crop at a random zoom, at most as large as a view."""
    zoom = draws.between(*views.scale)
    full_size = source.size(index)
    if views.fit:
        zoom *= min(out / full for full, out in zip(full_size, views.size, strict=True))
    starts, lengths, sizes = [], [], []
    for full, out in zip(full_size, views.size, strict=True):
        length = min(full, max(1, round(out / zoom)))
        starts.append(draws.below(full - length + 1))
        lengths.append(length)
        sizes.append(out if length < full else min(out, max(3, round(length * zoom))))
    return source.window(index, *starts, *lengths, size=(sizes[0], sizes[1]))


def _draw_turn(views: Views, draws: _Draws) -> tuple[int, list[int]]:
    """Draws the number of quarter turns and the dimensions to flip."""
    turn = draws.below(4) if views.rot90 else 0
    flips = [dim for dim, used in ((-2, views.vflip), (-1, views.hflip)) if used and draws.chance(0.5)]
    return turn, flips


def _turned(pixels: Tensor, turn: int, flips: list[int]) -> Tensor:
    if turn:
        pixels = torch.rot90(pixels, turn, (-2, -1))
    return pixels.flip(flips) if flips else pixels


def _weak_view(picture: Tensor, views: Views, draws: _Draws) -> Tensor:
    if views.weak_color == 0:
        return picture
    return color_twist(picture, brightness=draws.factor(views.weak_color), contrast=draws.factor(views.weak_color))


def _strong_view(picture: Tensor, views: Views, draws: _Draws) -> Tensor:
    brightness, contrast, saturation, hue = views.strong_color
    strong = color_twist(
        picture,
        brightness=draws.factor(brightness),
        contrast=draws.factor(contrast),
        saturation=draws.factor(saturation),
        hue=draws.between(-hue, hue),
    )
    if draws.chance(views.grayscale):
        strong = to_grey(strong)
    if draws.chance(views.blur_p):
        strong = gaussian_blur(strong, draws.between(*views.blur))
    if views.noise > 0:
        strong = strong.add_(torch.randn(strong.shape, generator=draws.generator), alpha=views.noise).clamp_(0.0, 1.0)
    return strong


def _placed(part: Tensor, size: tuple[int, int], corner: list[int]) -> Tensor:
    """The part (..., h, w) on a zero canvas (..., H, W) with its first pixel at `corner`."""
    height, width = part.shape[-2:]
    if (height, width) == size:
        return part
    canvas = part.new_zeros((*part.shape[:-2], *size))
    canvas[..., corner[0] : corner[0] + height, corner[1] : corner[1] + width] = part
    return canvas
