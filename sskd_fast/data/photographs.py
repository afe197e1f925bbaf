"""Detection of photographs among image files: JPEG files in colour, as cameras write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sskd_fast.data.errors import DataError
from sskd_fast.data.pixels import opened

# Size of the sample of files, and the share of it that must be photographs.
_SAMPLE, _SHARE = 30, 0.9
# Smallest mean difference between the strongest and weakest channel, of 255, of an image in colour.
_COLOUR = 5.0


def are_photographs(paths: list[Path]) -> bool:
    """True if nearly all files in an even sample are JPEG files in colour; False without files.

    Unreadable files count as not photographs; the checks of a data set report them.
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
