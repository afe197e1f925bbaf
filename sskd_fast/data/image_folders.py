"""The one place that decides which files are images, and says why the others in a folder are skipped."""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sskd_fast.data.errors import named
from sskd_fast.data.pixels import in_threads, is_picture, page_count
from sskd_fast.data.tars import SUFFIX, member_names

# Accepted by name alone, so that a damaged file is reported instead of skipped.
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".tga",
)  # fmt: skip
IMAGE_WORDS = "images that Pillow reads, such as .png, .jpg, .tif, .webp, .bmp, .jp2 or .avif"

# Formats of Pillow that are not pictures: programs, videos, and containers that need another program.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Formats that the first bytes identify for certain; no text file looks like them.
_TOLD_BY_CONTENT = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF")
_WITH_PAGES = (".tif", ".tiff", ".gif", ".webp", ".apng", ".avif", "")

HIDDEN = "hidden by a dot before the name"
DEAD_LINK = "links that lead nowhere"
SECOND_LINK = "links to what is taken already"
LINK_ABOVE = "links to a folder around this one"
CLOSED = "folders that may not be opened"
SPECIAL = "neither a file nor a folder"
DISGUISED = "images by their content but not by their suffix, to be renamed if they are wanted"
OTHER = "not images"


@dataclass(frozen=True)
class Listing:
    """The files of a folder and its sub-folders.

    names: image names relative to the folder, sorted.  passed: reason -> names of skipped files and folders.
    """

    names: tuple[str, ...] = ()
    passed: dict[str, list[str]] = field(default_factory=dict)

    @property
    def passed_words(self) -> str:
        """A line on skipped files and folders: numbers by reason, with examples; "" if there are none."""
        if not self.passed:
            return ""
        of_reasons = sorted(self.passed.items())
        parts = [f"{reason}: {len(names)} ({_examples(reason, names)})" for reason, names in of_reasons]
        return f"{sum(map(len, self.passed.values()))} passed over: {'; '.join(parts)}"


def _examples(reason: str, names: Sequence[str]) -> str:
    if reason != OTHER:
        return named(sorted(names), 3)
    kinds = Counter(Path(name).suffix.lower() or "without a suffix" for name in names)
    often_first = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return named([f"{kind} {count}" for kind, count in often_first], 5)


def list_images(folder: Path, *, tars: bool = False) -> Listing:
    """The images below a folder, and the skipped files; empty if the folder does not exist.

    tars: include images in tar archives; other members of an archive are ignored silently.
    Hidden files and folders are left out.  Links are followed, to each folder and each file once.
    """
    passed: dict[str, list[str]] = defaultdict(list)
    files = _without_second_links(list(_walk(folder, passed)), passed, folder)
    taken = []
    for path, reason in zip(files, in_threads(reason_against, files), strict=True):
        name = path.relative_to(folder).as_posix()
        if tars and path.suffix == SUFFIX and (inside := _images_in(path)):
            taken += [f"{name}/{member}" for member in inside]
        elif reason:
            passed[reason].append(name)
        else:
            taken.append(name)
    return Listing(tuple(sorted(taken)), dict(passed))


def _images_in(tar: Path) -> list[str]:
    return [name for name in member_names(tar) if name.lower().endswith(IMAGE_SUFFIXES)]


def is_image(path: Path) -> bool:
    """True for a file that counts as an image."""
    return path.is_file() and not reason_against(path)


def reason_against(path: Path) -> str:
    """The reason that a file does not count as an image; "" if it does.

    A usual suffix is enough.  Files with another suffix of Pillow's, or without one, are identified by their content.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return ""
    Image.init()
    kind = Image.registered_extensions().get(suffix)
    if kind == "MPO":  # the JPEG plugin opens it
        kind = "JPEG"
    if kind in _NO_PICTURES:
        return OTHER
    formats = [kind] if kind in Image.OPEN else [name for name in _TOLD_BY_CONTENT if name in Image.OPEN]
    if not is_picture(path, formats):
        return OTHER
    nameless = not suffix or suffix[1:].isdigit()
    return "" if nameless or kind in Image.OPEN else DISGUISED


def pages_words(paths: Iterable[Path]) -> str:
    """A line on files with several pages or frames, of which only the first is read; "" if there are none."""
    candidates = [path for path in paths if path.suffix.lower() in _WITH_PAGES]
    counts = zip(candidates, in_threads(page_count, candidates), strict=True)
    several = [f"{path.name} {count}" for path, count in counts if count > 1]
    if not several:
        return ""
    files = f"{len(several)} files hold" if len(several) > 1 else "1 file holds"
    return f"{files} several pages or frames ({named(several, 3)}): only the first is taken"


def _walk(folder: Path, passed: dict[str, list[str]]) -> Iterator[Path]:
    """Yields all files below a folder. Real folders come before links to folders, and each is visited once."""
    seen: set[tuple[int, int]] = set()
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        linked = not folders
        place = links.popleft() if linked else folders.popleft()
        name = place.relative_to(folder).as_posix()
        try:
            status = place.stat()
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            passed[CLOSED].append(name)
            continue
        if (status.st_dev, status.st_ino) in seen:
            passed[SECOND_LINK].append(name)
            continue
        if linked and folder.resolve().is_relative_to(place.resolve()):
            passed[LINK_ABOVE].append(name)
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from _sorted_out(entries, folder, passed, folders, links)


def _sorted_out(
    entries: Iterable[os.DirEntry[str]],
    folder: Path,
    passed: dict[str, list[str]],
    folders: deque[Path],
    links: deque[Path],
) -> Iterator[Path]:
    """Yields the files among the entries of a folder, and queues sub-folders and links to folders."""
    for entry in entries:
        path = Path(entry.path)
        reason = ""
        if entry.name.startswith("."):
            reason = HIDDEN
        elif entry.is_dir(follow_symlinks=False):
            folders.append(path)
        elif entry.is_symlink() and not path.exists():
            reason = DEAD_LINK
        elif path.is_dir():
            links.append(path)
        elif path.is_file():
            yield path
        else:
            reason = SPECIAL
        if reason:
            passed[reason].append(path.relative_to(folder).as_posix())


def _without_second_links(files: list[Path], passed: dict[str, list[str]], folder: Path) -> list[Path]:
    """The files without links to others of them and without second links to the same target."""
    links = {path for path in files if path.is_symlink()}
    taken = {path.resolve() for path in files if path not in links} if links else set()
    kept = []
    for path in files:
        if path in links:
            if path.resolve() in taken:
                passed[SECOND_LINK].append(path.relative_to(folder).as_posix())
                continue
            taken.add(path.resolve())
        kept.append(path)
    return kept
