"""Check that annotations of one set are all drawn on stored pixels or all on displayed pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sskd_fast.data.errors import DataError, Findings, named
from sskd_fast.data.orientation import drawn_on
from sskd_fast.data.pixels import in_threads, opened
from sskd_fast.data.source import ImageRecord

_CURE = "Turn the pixels and remove the orientation (exiftool -Orientation=, or ImageMagick's mogrify -auto-orient)"


def check_orientations(file: Path, records: Sequence[ImageRecord], findings: Findings) -> None:
    """Looks for images whose EXIF orientation leaves open which pixels their masks were drawn on.

    These are read as displayed.  Adds a problem if other images of the set were drawn on stored pixels, else a warning
    if none was drawn on displayed pixels.  Unreadable images are skipped.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for record, pixels in zip(records, in_threads(_pixels_of, records), strict=True):
        names[pixels].append(record.file_name)
    unsure, stored = names["unknown"], names["stored"]
    if not unsure:
        return
    found = f"{len(unsure)} images have an EXIF orientation that does not tell what their masks were drawn on"
    if stored:
        found = f"{found} ({named(unsure, 3)}), and {len(stored)} others were drawn on the pixels as stored"
        findings.add(file, "EXIF orientation", found, "one way for the whole set", f"{_CURE} of the images.")
    elif not names["shown"]:
        findings.warnings.append(
            f"{file}: {found} ({named(unsure, 3)}); they are turned as it says. {_CURE} if the masks were drawn before."
        )


def _pixels_of(record: ImageRecord) -> str:
    try:
        with opened(record.path) as image:
            return drawn_on(image, record.size)
    except DataError:
        return ""
