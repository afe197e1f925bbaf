"""A folder of plain images, without labels."""

from __future__ import annotations

from pathlib import Path

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.pixels import IMAGE_SUFFIXES
from sskd_fast.data.source import DEFAULT_CACHE_BYTES, ImageCollection, ImageRecord


class ImageFolder(ImageCollection):
    """Every image file below a folder, sorted by path, with ids 1..n; its instances are unknown (None).

    folder: searched recursively; hidden files are skipped.  name: how the set is called in messages.
    stretch, cache_bytes: see ImageCollection.  Raises DataError where the folder is missing or holds no image.
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
        names = image_files(folder)
        if not names:
            found = "no image file in the folder" if folder.is_dir() else "the folder does not exist"
            cure = "Correct the path, or convert the images to PNG."
            raise DataError([Problem(folder, "", found, f"files ending in {', '.join(IMAGE_SUFFIXES)}", cure)])
        records = [ImageRecord(number, name, folder / name) for number, name in enumerate(names, 1)]
        super().__init__(records, folder, name=name, stretch=stretch, cache_bytes=cache_bytes)


def image_files(folder: Path) -> list[str]:
    """The image files below a folder, as sorted paths relative to it; hidden files and folders are skipped."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_image(path, folder))


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
