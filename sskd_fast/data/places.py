"""The images named on a command line: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sskd_fast.data.image_folders import IMAGE_WORDS, OTHER, Listing, is_image, list_images


class InputError(ValueError):
    """Raised for a command line that names no readable image."""


@dataclass(frozen=True)
class FoundFiles:
    """Files and their common folder.

    names: relative to the folder.  notes: one line per place on skipped files.
    """

    folder: Path
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.folder / name for name in self.names]


def find_files(places: Sequence[str], *, also: Sequence[str] = (), skip: Path | None = None) -> FoundFiles:
    """The images of files, folders with sub-folders, and globs, without duplicates, in the order of the places.

    also: suffixes of other files that count if they are named or match a glob.  skip: a folder whose files are left
    out.  Raises InputError for a place without such files.
    """
    left_out = Path(os.path.abspath(skip)) if skip is not None else None
    paths: dict[Path, None] = {}
    notes = []
    for place in places:
        found, passed = _files(place, also)
        found = [file for file in found if left_out is None or left_out not in file.parents]
        if not found:
            raise InputError(_nothing(place, passed, also))
        paths |= dict.fromkeys(found)
        notes += [f"{place}: {passed}"] if passed else []
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return FoundFiles(folder, tuple(path.relative_to(folder).as_posix() for path in paths), tuple(notes))


def _files(place: str, also: Sequence[str]) -> tuple[list[Path], str]:
    """The files of a place, and a description of skipped ones."""
    path = Path(os.path.abspath(place))
    if path.is_dir():
        listing = list_images(path)
        return [path / name for name in listing.names], listing.passed_words
    if path.is_file():
        return [path], ""
    matches = [Path(os.path.abspath(match)) for match in sorted(glob.glob(place, recursive=True))]
    files = [match for match in matches if match.is_file()]
    found = [match for match in files if match.suffix.lower() in also or is_image(match)]
    others = [match.name for match in files if match not in set(found)]
    return found, Listing((), {OTHER: others} if others else {}).passed_words


def _nothing(place: str, passed: str, also: Sequence[str]) -> str:
    there = f" ({passed})" if passed else ""
    if Path(place).is_dir():
        further = f"; name files ending in {', '.join(also)} one by one" if also else ""
        return f"{place}: has no image{there}; expected {IMAGE_WORDS}{further}"
    if glob.has_magic(place):
        videos = f", or files ending in {', '.join(also)}" if also else ""
        return f"{place}: matches no readable file{there}; expected {IMAGE_WORDS}{videos}; check the pattern"
    return f"{place}: there is no such file or folder; correct the path"
