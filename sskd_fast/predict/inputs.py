"""The images that a command line names: files, folders, globs, and frames of videos."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.folder import image_files
from sskd_fast.data.pixels import IMAGE_SUFFIXES
from sskd_fast.predictor import ImageLike

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")


class InputError(ValueError):
    """A command line that names no image that can be read."""


@dataclass(frozen=True)
class Picture:
    """One image to predict.  file_name: relative to the common folder.  overlay: the name of its drawing.

    load: gives the image; raises DataError if it cannot be read.  origin: of a frame, its video and number.
    """

    file_name: str
    overlay: str
    load: Callable[[], ImageLike]
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """Images and videos in order.  folder: the common one.  files: relative to it.  every: frames of a video a step."""

    folder: Path
    files: tuple[str, ...]
    every: int = 1

    def stamps(self) -> list[tuple[str, int, int]]:
        """Name, bytes and time of change (ns) of every file."""
        status = [(name, (self.folder / name).stat()) for name in self.files]
        return [(name, found.st_size, found.st_mtime_ns) for name, found in status]

    def count(self) -> int:
        """The images in all, for a progress bar: of a video, as many as its header states."""
        return sum(_frame_count(self.folder / n, self.every) if _is_video(n) else 1 for n in self.files)

    def __iter__(self) -> Iterator[Picture]:
        """Every picture; one of a video is loaded before the next one is asked for, or not at all."""
        drawings = overlay_names(self.files)
        for name in self.files:
            path = self.folder / name
            if _is_video(name):
                yield from _frames(path, name, self.every)
            else:
                yield Picture(name, drawings[name], partial(Path, path))


def find_inputs(places: Sequence[str], *, every: int = 1, skip: Path | None = None) -> Inputs:
    """The images of files, folders with their sub-folders, and globs; each once, in the order of the places.

    Videos are taken if they are named or match a glob.  skip: a folder whose files are left out.  Raises InputError
    for a place without an image, and for a video without OpenCV.
    """
    left_out = Path(os.path.abspath(skip)) if skip is not None else None
    paths = list(dict.fromkeys(path for place in places for path in _files(place, left_out)))
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    files = tuple(path.relative_to(folder).as_posix() for path in paths)
    videos = [name for name in files if _is_video(name)]
    if videos and find_spec("cv2") is None:
        raise InputError(f"{videos[0]}: videos are read by OpenCV, which is missing: pip install 'sskd_fast[video]'")
    return Inputs(folder, files, every)


def overlay_names(files: Sequence[str]) -> dict[str, str]:
    """A PNG name for each file, all different; the suffix stays if another file could have the short name.

    a.jpg.png and a.tif.png for a.jpg and a.tif.
    """
    short = {name: PurePosixPath(name).with_suffix(".png").as_posix() for name in files}
    claims = Counter(claim for name in short for claim in {short[name], f"{name}.png"})
    return {name: found if claims[found] == 1 else f"{name}.png" for name, found in short.items()}


def _files(place: str, skip: Path | None) -> list[Path]:
    path = Path(os.path.abspath(place))
    if path.is_dir():
        found = [path / name for name in image_files(path)]
    elif path.is_file():
        found = [path]
    else:
        matches = sorted(glob.glob(place, recursive=True))
        found = [Path(os.path.abspath(match)) for match in matches if _is_media(match)]
    found = [file for file in found if skip is None or skip not in file.parents]
    if not found:
        raise InputError(_nothing(place, path))
    return found


def _nothing(place: str, path: Path) -> str:
    suffixes = ", ".join(IMAGE_SUFFIXES)
    if path.is_dir():
        return f"{place}: holds no image; expected files ending in {suffixes}; name videos one by one"
    if glob.has_magic(place):
        return f"{place}: matches no image or video; expected files ending in {suffixes}; check the pattern"
    return f"{place}: there is no such file or folder; correct the path"


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES)


def _is_media(name: str) -> bool:
    return name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)) and os.path.isfile(name)


def _frames(path: Path, name: str, every: int) -> Iterator[Picture]:
    import cv2

    capture, number = cv2.VideoCapture(str(path)), 0
    stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    try:
        while capture.grab():
            if number % every == 0:
                file_name = f"{name}/{number:06d}.png"
                load = partial(_frame, capture, path, number)
                yield Picture(file_name, file_name, load, {"video": name, "frame": number})
            number += 1
    finally:
        capture.release()
    if number == 0:
        yield Picture(name, name, partial(_refuse, path, "", "no frame that can be read"))
    elif number < stated:
        yield Picture(name, name, partial(_refuse, path, "", f"ends after {number} of {stated} frames"))


def _frame(capture: Any, path: Path, number: int) -> ImageLike:
    """The frame in RGB."""
    good, pixels = capture.retrieve()
    return pixels[..., ::-1] if good else _refuse(path, f"frame {number}", "a frame that cannot be decoded")


def _refuse(path: Path, item: str, found: str) -> ImageLike:
    cure = "Copy it again, or convert it, for example to H.264 in MP4."
    raise DataError([Problem(path, item, found, "a whole, readable video", cure)])


def _frame_count(path: Path, every: int) -> int:
    import cv2

    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return max(0, -(-count // every))
