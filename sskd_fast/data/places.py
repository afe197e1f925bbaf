"""The images that a command line names: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from sskd_fast.data.folder import image_files
from sskd_fast.data.pixels import IMAGE_SUFFIXES


class InputError(ValueError):
    """A command line that names no image that can be read."""


def find_files(
    places: Sequence[str], *, also: Sequence[str] = (), skip: Path | None = None
) -> tuple[Path, tuple[str, ...]]:
    """The images of files, folders with their sub-folders, and globs; each once, in the order of the places.

    Returns the folder that all of them share, and their paths below it.  also: suffixes of further files, taken if
    they are named or match a glob.  skip: a folder whose files are left out.  Raises InputError for a place without
    such a file.
    """
    left_out = Path(os.path.abspath(skip)) if skip is not None else None
    paths = list(dict.fromkeys(path for place in places for path in _files(place, also, left_out)))
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return folder, tuple(path.relative_to(folder).as_posix() for path in paths)


def _files(place: str, also: Sequence[str], skip: Path | None) -> list[Path]:
    path = Path(os.path.abspath(place))
    if path.is_dir():
        found = [path / name for name in image_files(path)]
    elif path.is_file():
        found = [path]
    else:
        suffixes = (*IMAGE_SUFFIXES, *also)
        matches = [Path(os.path.abspath(match)) for match in sorted(glob.glob(place, recursive=True))]
        found = [match for match in matches if match.suffix.lower() in suffixes and match.is_file()]
    found = [file for file in found if skip is None or skip not in file.parents]
    if not found:
        raise InputError(_nothing(place, path, also))
    return found


def _nothing(place: str, path: Path, also: Sequence[str]) -> str:
    suffixes = ", ".join(IMAGE_SUFFIXES)
    if path.is_dir():
        further = f"; name files ending in {', '.join(also)} one by one" if also else ""
        return f"{place}: holds no image; expected files ending in {suffixes}{further}"
    if glob.has_magic(place):
        return f"{place}: matches nothing that can be read; expected {', '.join((suffixes, *also))}; check the pattern"
    return f"{place}: there is no such file or folder; correct the path"
