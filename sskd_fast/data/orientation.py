"""EXIF orientation: the size that an image is shown at, and its pixels turned so."""

from __future__ import annotations

import struct
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

_ORIENTATION_TAG = 0x0112
# EXIF orientations that swap the sides, and what takes an image that is shown so back to how it is stored.
_TRANSPOSING_ORIENTATIONS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Raised by Pillow's readers of damaged files.
DECODING_ERRORS = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    RuntimeError, EOFError, AssertionError, struct.error, Image.DecompressionBombError,
)  # fmt: skip


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 for none or one that is no number from 1 to 8; asking a PNG that states none in its header
    would decode it."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODING_ERRORS:  # what viewers pass over too
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as the file holds them; of a TIFF, which Pillow turns by itself, those are in its tags."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[IMAGELENGTH]), int(image.tag_v2[IMAGEWIDTH])
    return image.height, image.width


def is_turned(image: Image.Image, size: tuple[int, int] | None) -> bool:
    """True if the image is shown with its sides swapped; not if only the stored shape fits the annotations."""
    stored = stored_size(image)
    drawn_on_stored = size == stored and size != stored[::-1]
    return orientation(image) in _TRANSPOSING_ORIENTATIONS and not drawn_on_stored


def as_shown(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The image turned as its orientation says, or as it is stored if its annotations were drawn on that."""
    stated, turned = orientation(image), is_turned(image, size)
    image.load()
    turned_by_pillow = isinstance(image, TiffImageFile)
    if stated in _TRANSPOSING_ORIENTATIONS and not turned:
        return image.transpose(_TRANSPOSING_ORIENTATIONS[stated]) if turned_by_pillow else image
    return image if stated == 1 or turned_by_pillow else ImageOps.exif_transpose(image)


def drawn_on(image: Image.Image, size: tuple[int, int] | None) -> Literal["", "stored", "shown", "unknown"]:
    """The pixels that annotations were drawn on, as far as the size (height, width) that they state tells; "" for an
    image without an orientation."""
    stated, stored = orientation(image), stored_size(image)
    if stated == 1:
        return ""
    if stated not in _TRANSPOSING_ORIENTATIONS or stored == stored[::-1] or size not in (stored, stored[::-1]):
        return "unknown"
    return "stored" if size == stored else "shown"
