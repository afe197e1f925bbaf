"""Intensities of images as they come from cameras and microscopes, brought to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW_PERCENTILE = 1.0
HIGH_PERCENTILE = 99.7


def stretch_intensity(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The image with its 1st to 99.7th percentile stretched over 0..255, and inverted where its background is bright.

    image: (H, W) or (H, W, 3), any integer or float dtype.  Percentiles are taken over all channels together, so that
    the balance of the colours stays.  An image whose median exceeds 0.5 after the stretch is inverted: objects become
    bright on a dark background, as in fluorescence microscopy.  A constant image becomes 0.  Returns uint8 of the same
    shape.
    """
    low, middle, high = np.percentile(image, (LOW_PERCENTILE, 50.0, HIGH_PERCENTILE))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    if high <= low:
        return np.zeros(image.shape, dtype=np.uint8)
    stretched = np.clip((image.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    if (middle - low) / (high - low) > 0.5:
        stretched = 1.0 - stretched
    quantized: NDArray[np.uint8] = np.rint(stretched * 255.0).astype(np.uint8)
    return quantized


def to_eight_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image of more than 8 bits scaled by its bit depth: the fewest bits, 8 to 16, that hold its maximum.

    A 12-bit recording in a 16-bit file therefore keeps its contrast.  Float images with values in [0, 1] are scaled by
    255; other float and 32-bit images by their maximum where that needs more than 16 bits.  Negative values become 0.
    """
    top = float(np.nanmax(image)) if image.size else 0.0
    if np.issubdtype(image.dtype, np.floating) and top <= 1.0:
        full = 1.0
    elif top >= 2.0**16:
        full = top
    else:
        full = 2.0 ** max(8, int(np.floor(top)).bit_length()) - 1.0
    scaled = np.nan_to_num(image.astype(np.float32)) * np.float32(255.0 / full)
    quantized: NDArray[np.uint8] = np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)
    return quantized
