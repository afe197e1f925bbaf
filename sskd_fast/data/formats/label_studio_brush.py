"""Decoder of Label Studio's run-length code for brush strokes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sskd_fast.rle import MaskError


def decode_brush(code: Sequence[int], length: int) -> NDArray[np.uint8]:
    """Decodes Label Studio's run-length code to `length` bytes: the RGBA values of the pixels, row by row.

    The bit stream has the length (32 bits), the bits per value minus one (5), and four widths of run lengths minus one
    (4 each).  Then come blocks: 1 bit, set if one value repeats; 2 bits for the width; the run's length minus one; the
    value or values.  Raises MaskError if the code is malformed or has another length.
    """
    cure = "Use the image that was annotated, or export the project again."
    try:
        bits = _Bits(bytes(code))
        stated, value_bits = bits.read(32), bits.read(5) + 1
        widths = [bits.read(4) + 1 for _ in range(4)]
        if stated == length:
            return _decode_blocks(bits, value_bits, widths, length)
    except (TypeError, ValueError):
        raise MaskError("a brush stroke whose code cannot be read", "Label Studio's whole RLE", cure) from None
    raise MaskError(f"a brush stroke of {stated} bytes", f"{length}, four for each pixel of the image", cure)


class _Bits:
    """Reader of integers from a bit stream, highest bit first.  Raises ValueError past the end."""

    def __init__(self, code: bytes) -> None:
        self._text = "".join(f"{byte:08b}" for byte in code)
        self._at = 0

    def read(self, count: int) -> int:
        start, self._at = self._at, self._at + count
        if self._at > len(self._text):
            raise ValueError("the code ends early")
        return int(self._text[start : self._at], 2)


def _decode_blocks(bits: _Bits, value_bits: int, widths: Sequence[int], length: int) -> NDArray[np.uint8]:
    found = np.zeros(length, dtype=np.uint8)
    filled = 0
    while filled < length:
        repeated = bits.read(1)
        count = bits.read(widths[bits.read(2)]) + 1
        if filled + count > length:
            raise ValueError("a run passes the end")
        values = [bits.read(value_bits) for _ in range(1 if repeated else count)]
        found[filled : filled + count] = values
        filled += count
    return found
