"""A folder of plain images, without labels."""

from __future__ import annotations

from pathlib import Path

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.image_folders import IMAGE_WORDS, list_images
from sskd_fast.data.source import DEFAULT_CACHE_BYTES, ImageCollection, ImageRecord


class ImageFolder(ImageCollection):
    """All images below a folder, also in tar archives, sorted by path, with ids 1..n and without instances (None).

    folder: searched recursively, see `list_images`; `listing` names skipped files.  name: name of the set in messages.
    stretch, cache_bytes: see ImageCollection.  Raises DataError if the folder is missing or has no image.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "",
        stretch: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        folder = Path(folder)
        self.listing = list_images(folder, tars=True)
        if not self.listing.names:
            passed = f" ({self.listing.passed_words})" if self.listing.passed else ""
            found = f"no image file in the folder{passed}" if folder.is_dir() else "the folder does not exist"
            cure = "Correct the path, or convert the images to PNG."
            raise DataError([Problem(folder, "", found, IMAGE_WORDS, cure)])
        records = [ImageRecord(n, name, folder, numbered=True) for n, name in enumerate(self.listing.names, 1)]
        super().__init__(records, folder, name=name, stretch=stretch, cache_bytes=cache_bytes)
