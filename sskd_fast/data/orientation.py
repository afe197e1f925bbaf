"""EXIF orientation: the displayed size of an image, and its pixels turned accordingly."""

from __future__ import annotations

import struct
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

_ORIENTATION_TAG = 0x0112
# EXIF orientations that swap the sides -> the transposition from displayed back to stored pixels.
_TRANSPOSING_ORIENTATIONS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Errors that Pillow raises for damaged files.
DECODING_ERRORS = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    RuntimeError, EOFError, AssertionError, struct.error, Image.DecompressionBombError,
)  # fmt: skip


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if it is missing or not a number from 1 to 8.

    A PNG is asked only if its header states an orientation, since asking would decode it.
    """
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODING_ERRORS:  # viewers ignore it too
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as stored in the file; for a TIFF from its tags, because Pillow turns it on its own."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[IMAGELENGTH]), int(image.tag_v2[IMAGEWIDTH])
    return image.height, image.width


def is_turned(image: Image.Image, size: tuple[int, int] | None) -> bool:
    """True if the image is displayed with swapped sides, unless only the stored shape fits the annotations."""
    stored = stored_size(image)
    drawn_on_stored = size == stored and size != stored[::-1]
    return orientation(image) in _TRANSPOSING_ORIENTATIONS and not drawn_on_stored


def as_shown(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The image turned by its orientation, or as stored if its annotations were drawn on the stored pixels."""
    stated, turned = orientation(image), is_turned(image, size)
    image.load()
    turned_by_pillow = isinstance(image, TiffImageFile)
    if stated in _TRANSPOSING_ORIENTATIONS and not turned:
        return image.transpose(_TRANSPOSING_ORIENTATIONS[stated]) if turned_by_pillow else image
    return image if stated == 1 or turned_by_pillow else ImageOps.exif_transpose(image)


def drawn_on(image: Image.Image, size: tuple[int, int] | None) -> Literal["", "stored", "shown", "unknown"]:
    """The pixels that annotations were drawn on, judged by the (height, width) they state.

    "" for an image without an orientation, "unknown" if the size does not tell.
    """
    stated, stored = orientation(image), stored_size(image)
    if stated == 1:
        return ""
    if stated not in _TRANSPOSING_ORIENTATIONS or stored == stored[::-1] or size not in (stored, stored[::-1]):
        return "unknown"
    return "stored" if size == stored else "shown"
