"""Label Studio's run-length code of brush strokes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sskd_fast.rle import MaskError


def decode_brush(code: Sequence[int], length: int) -> NDArray[np.uint8]:
    """Label Studio's run-length code as `length` bytes: the colours and opacity (RGBA) of the pixels, row by row.

    A stream of bits: the length (32), the bits of a value less one (5), four widths of run lengths less one (4 each),
    then blocks: 1 bit, set if one value is repeated; 2 bits for the width; the run's length less one; the value or
    values. Raises MaskError if it is malformed or of another length.
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
    """Whole numbers read from bytes, bit by bit, the highest first; ValueError past the end."""

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
