"""Conversion of image intensities from cameras and microscopes to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW_PERCENTILE = 1.0
HIGH_PERCENTILE = 99.7
# Values scaled at a time.
_STRIP = 1 << 22


def stretch_intensity(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The image with its 1st to 99.7th percentile stretched to 0..255, and inverted if its background is bright.

    image: (H, W) or (H, W, 3), any integer or float dtype.  Percentiles span all channels together, which keeps
    the colour balance.  An image whose median exceeds 0.5 after the stretch is inverted, so that objects are bright on
    a dark background, as in fluorescence microscopy.  A constant image becomes 0.  Returns uint8 of the same shape.
    Raises ValueError like `to_eight_bits`.
    """
    image = _finite(image)
    low, middle, high = np.percentile(image, (LOW_PERCENTILE, 50.0, HIGH_PERCENTILE))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    if high <= low:
        return np.zeros(image.shape, dtype=np.uint8)
    inverted = (middle - low) / (high - low) > 0.5

    def stretched(rows: NDArray[Any]) -> NDArray[Any]:
        share = np.clip((rows.astype(np.float32) - low) / (high - low), 0.0, 1.0)
        return np.rint((1.0 - share if inverted else share) * 255.0)

    return _in_strips(image, stretched)


def _in_strips(image: NDArray[Any], work: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    """Applies a pixelwise function strip by strip, because its float intermediates take several bytes per pixel."""
    quantized = np.empty(image.shape, dtype=np.uint8)
    rows = max(1, _STRIP * len(image) // image.size)
    for top in range(0, len(image), rows):
        quantized[top : top + rows] = work(image[top : top + rows])
    return quantized


def _finite(image: NDArray[Any]) -> NDArray[Any]:
    """The image with NaN and infinities replaced; see `to_eight_bits`."""
    if not np.issubdtype(image.dtype, np.floating) and not np.issubdtype(image.dtype, np.signedinteger):
        return image
    sound = np.isfinite(image)
    values = image if sound.all() else image[sound]
    if not values.size:
        raise ValueError("no value is a finite number; expected intensities of 0 and above")
    low, high = values.min(), values.max()
    if low < 0 >= high:
        raise ValueError(f"values from {low:g} to {high:g}; expected intensities of 0 and above: shift them")
    return image if values is image else np.nan_to_num(image, nan=0.0, posinf=high, neginf=low)


def to_eight_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image of more than 8 bits scaled by its bit depth: the fewest bits, 8 to 16, that hold its maximum.

    A 12-bit recording in a 16-bit file therefore keeps its contrast.  Float images with values in [0, 1] are scaled by
    255.  Other float and 32-bit images are scaled by their maximum if that needs more than 16 bits.  Negative values
    and NaN become 0, and infinities the smallest or largest finite value.  Raises ValueError if no value is finite, or
    if some values are negative and none is positive.
    """
    image = _finite(image)
    top = float(image.max()) if image.size else 0.0
    if np.issubdtype(image.dtype, np.floating) and top <= 1.0:
        full = 1.0
    elif top >= 2.0**16:
        full = top
    else:
        full = 2.0 ** max(8, int(np.floor(top)).bit_length()) - 1.0
    factor = np.float32(255.0 / full)
    return _in_strips(image, lambda rows: np.rint(np.clip(rows.astype(np.float32) * factor, 0.0, 255.0)))
