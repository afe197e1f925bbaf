"""Decoding of image files to 8-bit arrays, and caches for them."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sskd_fast import _env
from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.intensity import stretch_intensity, to_eight_bits
from sskd_fast.data.orientation import DECODING_ERRORS, as_shown, is_turned, stored_size
from sskd_fast.data.tars import open_file
from sskd_fast.files import encoded, write_atomically
from sskd_fast.scalars import LARGEST_IMAGE

MISSING_IMAGE = "the image file does not exist"
# 16384 x 16384.  A header of a few bytes can claim any size; reading this many pixels takes 2 GB of memory.
MAX_PIXELS = 1 << 28
# Pixels converted at a time; size from which images are decoded one at a time.
_STRIP, _LARGE = 1 << 24, 1 << 25
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


_THREADS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results of `work` in order, computed in threads: decoding and file reads run in parallel."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, items))


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=_Sized)


class ByteBudgetCache(Generic[Value]):
    """An LRU cache limited by the number of bytes in memory."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value under `key`, made and cached on the first request."""
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
            return found
        value = make()
        if value.nbytes <= self.budget:
            self._values[key] = value
            self.nbytes += value.nbytes
            while self.nbytes > self.budget:
                self.nbytes -= self._values.popitem(last=False)[1].nbytes
        return value

    def __len__(self) -> int:
        return len(self._values)

    def __getstate__(self) -> dict[str, Any]:
        """A copy sent to another process starts empty."""
        return {"budget": self.budget, "nbytes": 0, "_values": OrderedDict()}


_REPLACE = "Replace the file, or leave the image out."


def _unreadable(path: Path, cause: str, cure: str = _REPLACE) -> DataError:
    return DataError([Problem(path, "", cause, "a readable image", cure)])


def _no_image(path: Path) -> tuple[str, str]:
    """A description of a file that Pillow does not recognise as an image, and the cure."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        return "it is empty", _REPLACE
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "it is a pointer of Git LFS", "Fetch the images with `git lfs pull`."
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page", "Download the image again: the server answered with a page, perhaps of an error."
    return "its content is of no known image format", _REPLACE


class _AnySize:
    """Lifts Pillow's process-wide pixel limit until the last thread that asked for it is done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._threads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                Image.MAX_IMAGE_PIXELS = self._limit


any_size = _AnySize()


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image file, limited only by `data.max_pixels`.  Raises DataError if opening or decoding it fails."""
    limit = pixel_limit()
    try:
        # From an open file: Pillow 12 corrupts TIFFs that it opens by name, maps into memory, and turns.
        with any_size, open_file(path) as file, Image.open(file) as image:
            _check_pixels(path, image, limit)
            yield image
    except DataError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise _unreadable(path, MISSING_IMAGE) from None
    except UnidentifiedImageError as error:
        cause, cure = _no_image(path)
        raise _unreadable(path, f"the image file cannot be read ({cause})", cure) from error
    except DECODING_ERRORS as error:
        raise _unreadable(path, f"the image file cannot be read ({error})") from error


def pixel_limit() -> int:
    """The pixel limit for reading an image.  Raises DataError if the environment variable is not a number."""
    try:
        return _env.max_pixels(MAX_PIXELS)
    except ValueError as error:
        cure = f"Give a whole number, such as {MAX_PIXELS}, or unset it."
        raise DataError([Problem("SSKD_FAST_MAX_PIXELS", "", str(error), "a number of pixels", cure)]) from None


def _check_pixels(path: Path, image: Image.Image, limit: int) -> None:
    pixels = image.width * image.height
    if pixels > limit:
        found = f"the image has {image.height} x {image.width} pixels (height x width), {pixels:,} in all"
        cure = (
            f"Raise the limit, data.max_pixels={pixels} of a run, --max-pixels of predict or SSKD_FAST_MAX_PIXELS "
            "elsewhere, if there are 8 bytes of memory for each of them; or cut the image into parts."
            if pixels <= LARGEST_IMAGE
            else f"Cut the image into tiles: masks of more than {LARGEST_IMAGE:,} pixels cannot be written."
        )
        raise DataError([Problem(path, "", found, f"at most {limit:,}", cure)])


def is_picture(path: Path, formats: list[str]) -> bool:
    """True if the header of a file matches one of these Pillow formats."""
    try:
        with any_size, Image.open(path, formats=formats):
            return True
    except DECODING_ERRORS:
        return False


def page_count(path: Path) -> int:
    """The number of pages or frames of an image file, of which `read_pixels` reads the first; 1 if unreadable."""
    try:
        with any_size, open_file(path) as file, Image.open(file) as image:
            return int(getattr(image, "n_frames", 1))
    except DECODING_ERRORS:
        return 1


def image_size(path: Path, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """The (height, width) of `read_pixels` for an image file, from its header.  Raises DataError if unreadable.

    size: the (height, width) that the annotations state, or None.
    """
    with opened(path) as image:
        stored = stored_size(image)
        return stored[::-1] if is_turned(image, size) else stored


def image_pixels(
    image: Image.Image, size: tuple[int, int] | None = None, *, stretch: bool = False
) -> NDArray[np.uint8]:
    """An opened image as (H, W) grey or (H, W, 3) RGB, uint8; size, stretch and conversions: see `read_pixels`."""
    shown = as_shown(image, size)
    if shown.mode in _WIDE_MODES:
        return array_pixels(np.asarray(shown), stretch=stretch)
    return array_pixels(_converted(shown, "L" if shown.mode in ("1", "L", "LA", "La") else "RGB"), stretch=stretch)


def _converted(image: Image.Image, mode: str) -> NDArray[np.uint8]:
    """The pixels in an 8-bit mode, converted strip by strip to avoid a second copy of a large image."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        return np.array(image.convert(mode))
    array = np.empty((image.height, image.width, *((3,) if mode == "RGB" else ())), dtype=np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        array[top : top + rows] = np.asarray(strip.convert(mode))
    return array


_one_at_a_time = threading.Lock()


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    """A lock for decoding an image: large images go one at a time, so that threads do not add up their memory."""
    return _one_at_a_time if image.width * image.height > _LARGE else nullcontext()


def array_pixels(array: NDArray[Any], *, stretch: bool = False) -> NDArray[np.uint8]:
    """Converts an array to (H, W) grey or (H, W, 3) RGB, uint8.

    array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of any integer or float dtype; alpha is dropped.
    stretch: see `read_pixels`.  Raises ValueError for another shape.
    """
    if array.ndim == 3 and array.shape[2] in (1, 4):
        array = array[..., 0] if array.shape[2] == 1 else array[..., :3]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise ValueError(f"image: found an array of shape {array.shape}, expected (H, W) or (H, W, 3) in RGB")
    if stretch:
        return stretch_intensity(array)
    return np.ascontiguousarray(array) if array.dtype == np.uint8 else to_eight_bits(array)


def read_pixels(path: Path, size: tuple[int, int] | None = None, *, stretch: bool = False) -> NDArray[np.uint8]:
    """Reads an image file as (H, W) grey or (H, W, 3) RGB, uint8.

    Palette, CMYK, 1-bit and alpha images are converted; alpha is dropped.  Images of more than 8 bits are scaled to 8
    (`to_eight_bits`, or `stretch_intensity` if `stretch`, from their full depth).  EXIF rotation is applied.
    size: the (height, width) that the annotations state, or None.  Raises DataError naming the file if it is missing,
    unreadable or of another size.
    """
    with opened(path) as image, _turn(image):
        array = image_pixels(image, size, stretch=stretch)
    if size is not None and array.shape[:2] != tuple(size):
        found = f"the image is {array.shape[0]} x {array.shape[1]} pixels (height x width)"
        cure = "Correct `height` and `width` of its record, or use the image that was annotated."
        raise DataError([Problem(path, "", found, f"{size[0]} x {size[1]}, as the annotations state", cure)])
    return array


def stored_pixels(
    folder: Path, path: Path, size: tuple[int, int] | None = None, *, stretch: bool = False
) -> NDArray[np.uint8]:
    """`read_pixels` with a disk cache: the decoded array is stored below `folder` and memory-mapped from then on.

    A crop then reads only its rows, and processes share the system's page cache.  A changed image file is decoded
    again.
    """
    try:
        status = path.stat()
    except OSError:
        return read_pixels(path, size, stretch=stretch)
    content = f"{path.resolve()} {status.st_mtime_ns} {status.st_size} {size} {stretch}"
    name = hashlib.blake2b(encoded(content), digest_size=16).hexdigest()
    file = folder / name[:2] / f"{name}.npy"
    if not file.exists():
        pixels = read_pixels(path, size, stretch=stretch)
        write_atomically(file, lambda partial: _save(partial, pixels), keep=True)
    mapped: NDArray[np.uint8] = np.load(file, mmap_mode="c")
    return mapped


def _save(file: Path, pixels: NDArray[np.uint8]) -> None:
    with file.open("wb") as stream:
        np.save(stream, pixels)
