"""The images named on the command line: files, folders, globs, and frames of videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.image_folders import pages_words
from sskd_fast.data.places import InputError, find_files
from sskd_fast.predictor import ImageLike

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class Picture:
    """One image to predict.  file_name: relative to the common folder.  overlay: file name of its drawing.

    load: returns the image, or raises DataError if it cannot be read.  origin: video and number of a frame.
    """

    file_name: str
    overlay: str
    load: Callable[[], ImageLike]
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """Images and videos in order.  folder: their common folder.  files: relative to it.  every: use every nth frame.

    notes: lines on skipped files.
    """

    folder: Path
    files: tuple[str, ...]
    every: int = 1
    notes: tuple[str, ...] = ()

    def stamps(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and modification time (ns) of each file."""
        status = [(name, (self.folder / name).stat()) for name in self.files]
        return [(name, found.st_size, found.st_mtime_ns) for name, found in status]

    def count(self) -> int:
        """The total number of images for a progress bar; for a video, from its header."""
        return sum(_frame_count(self.folder / n, self.every) if _is_video(n) else 1 for n in self.files)

    def __iter__(self) -> Iterator[Picture]:
        """Yields all pictures. Load a video's frame before asking for the next one, or not at all."""
        drawings = overlay_names(self.files)
        for name in self.files:
            path = self.folder / name
            if _is_video(name):
                yield from _frames(path, name, self.every)
            else:
                yield Picture(name, drawings[name], partial(Path, path))


def find_inputs(places: Sequence[str], *, every: int = 1, skip: Path | None = None) -> Inputs:
    """The images and videos of the given places; skip: see `find_files`.

    Videos count only if they are named or match a glob.  Raises InputError for a place without images, or for a video
    if OpenCV is missing.
    """
    found = find_files(places, also=VIDEO_SUFFIXES, skip=skip)
    videos = [name for name in found.names if _is_video(name)]
    if videos and find_spec("cv2") is None:
        raise InputError(f"{videos[0]}: videos are read by OpenCV, which is missing: pip install 'sskd_fast[video]'")
    pages = pages_words(path for path in found.paths if not _is_video(path.name))
    return Inputs(found.folder, found.names, every, (*found.notes, *([pages] if pages else [])))


def overlay_names(files: Sequence[str]) -> dict[str, str]:
    """A unique PNG name for each file. The original suffix stays if two files would get the same name:

    a.jpg.png and a.tif.png for a.jpg and a.tif.
    """
    short = {name: PurePosixPath(name).with_suffix(".png").as_posix() for name in files}
    claims = Counter(claim for name in short for claim in {short[name], f"{name}.png"})
    return {name: found if claims[found] == 1 else f"{name}.png" for name, found in short.items()}


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES)


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
