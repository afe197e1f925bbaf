"""Photographs among image files, by what cameras write: JPEG files in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sskd_fast.data.errors import DataError
from sskd_fast.data.pixels import opened

# Of so many files, so large a share must be.
_SAMPLE, _SHARE = 30, 0.9
# The mean difference between a pixel's strongest and weakest channel, of 255, from which an image is in colour.
_COLOUR = 5.0


def are_photographs(paths: list[Path]) -> bool:
    """True if nearly all of an even sample of the files are JPEG files in colour; False without a file.

    Files that cannot be read are none: the checks of a data set name them.
    """
    step = max(1, len(paths) // _SAMPLE)
    sample = sorted(paths)[::step][:_SAMPLE]
    return bool(sample) and sum(map(_is_photograph, sample)) >= _SHARE * len(sample)


def _is_photograph(path: Path) -> bool:
    try:
        with opened(path) as image:
            if image.format != "JPEG" or image.mode != "RGB":
                return False
            image.draft("RGB", (64, 64))
            pixels = np.asarray(image.resize((64, 64)), dtype=np.int16)
    except DataError:
        return False
    return float((pixels.max(2) - pixels.min(2)).mean()) > _COLOUR
