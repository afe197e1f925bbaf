"""Image files found by the names in labels, even if a tool spelt them differently."""

from __future__ import annotations

import contextlib
import difflib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from sskd_fast.data.coco_records import CocoRecords
from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.pixels import MISSING_IMAGE
from sskd_fast.data.source import ImageRecord

_NEAREST = 20


@dataclass
class LocatedFiles:
    """The files of a folder that match names in labels.

    found: name -> path relative to the folder, for names that are not file names themselves.  ambiguous: name -> its
    possible files.  missing: names without a file.  outside: names that point outside the folder.  taken: path relative
    to the folder -> names that refer to it.
    """

    folder: Path
    found: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)

    @cached_property
    def _by_name(self) -> Mapping[str, list[str]]:
        """Files of the folder by plain name (NFC, lower case), as relative paths."""
        files = defaultdict(list)
        for folder, inner, names in os.walk(self.folder):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), self.folder).replace(os.sep, "/")
                files[_plain(name)].append(path)
        return files

    def candidates(self, name: str) -> list[str]:
        """The possible files for a name: among those whose path ends in it, or that it ends in, the longest matches."""
        for spelling in _spellings(name):
            parts = [part for part in spelling.split("/") if part not in ("", ".", "..")]
            files = self._by_name.get(_plain(parts[-1]), []) if parts else []
            common = [_common_end(parts, file.split("/")) for file in files]
            best = [file for file, count in zip(files, common, strict=True) if count and count == max(common)]
            exact = [file for file in best if _form(file.rsplit("/", 1)[-1]) == _form(parts[-1])]
            if best:
                return exact or best
        return []

    def nearest(self, name: str) -> str | None:
        """The file with the most similar name that no other name refers to; None if there is none."""
        last = _plain(_spellings(name)[-1].rsplit("/", 1)[-1])
        unused = ((key, [f for f in files if f not in self.taken]) for key, files in self._by_name.items())
        free = {key: files for key, files in unused if files}
        close = [key for key in free if Path(key).stem == last]  # a name without its suffix
        close = close or difflib.get_close_matches(last, list(free)[:5000], 1, 0.6)
        return free[close[0]][0] if close else None


def _form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _plain(name: str) -> str:
    return _form(name).casefold()


def _common_end(first: list[str], second: list[str]) -> int:
    """The number of parts of the shorter path if the longer one ends in it, else 0."""
    length = min(len(first), len(second))
    return length if list(map(_plain, first[-length:])) == list(map(_plain, second[-length:])) else 0


def _spellings(name: str) -> list[str]:
    """Variants of a name without the path separators, escapes and URLs of other systems, the plainest first."""
    parts = None
    with contextlib.suppress(ValueError):  # text that only looks like a URL
        parts = urlsplit(name) if "://" in name or "?" in name else None
    local = parse_qs(parts.query).get("d", [parts.path])[0] if parts is not None else name
    slashes = local.strip().replace("\\", "/")
    folder, _, last = unquote(slashes).rpartition("/")
    prefix, _, rest = last.partition("-")
    # Label Studio puts eight characters before the name of an upload.
    uploaded = [f"{folder}/{rest}"] if len(prefix) == 8 and rest else []
    return list(dict.fromkeys([slashes, unquote(slashes), *uploaded]))


def locate(names: Iterable[str], folder: Path, *, confine: bool = False) -> LocatedFiles:
    """Finds the image files for names, relative to `folder`.

    A name that is an existing file is that file.  Otherwise backslashes, percent escapes, URLs, upload prefixes,
    leading folders, case and Unicode form may differ.  Exactly one file must fit, and no other name may refer to
    it.
    confine: reject names that point outside the folder, also through links.
    """
    located = LocatedFiles(folder)
    root, taken = os.path.realpath(folder), located.taken
    for name in dict.fromkeys(names):
        path = os.path.join(folder, name)
        if confine and os.path.commonpath([root, os.path.realpath(path)]) != root:
            located.outside.append(name)
        elif os.path.isfile(path):
            taken[os.path.normpath(name).replace(os.sep, "/")] += 1
        elif not (candidates := located.candidates(name)):
            located.missing.append(name)
        elif len(candidates) > 1:
            located.ambiguous[name] = candidates
        else:
            located.found[name] = candidates[0]
    taken.update(located.found.values())
    for name, file in list(located.found.items()):
        if taken[file] > 1:
            located.ambiguous[name] = [located.found.pop(name)]
    return located


def image_records(
    records: CocoRecords,
    folder: Path,
    findings: Findings | None = None,
    *,
    confine: bool = False,
    numbered: bool = False,
) -> dict[int, ImageRecord]:
    """The images of a COCO file with their paths, by id.

    findings: gets a problem for each image without a file, and a warning about names found under another spelling.
    confine: raise DataError for file names that point outside `folder`.  numbered: see `ImageRecord`.
    """
    located = locate((image["file_name"] for image in records.images.values()), folder, confine=confine)
    if located.outside:
        expected = f"files below {folder}, as --confine (data.confine of a run) demands"
        cure = "Correct `file_name`, or leave that out if you trust the labels."
        raise DataError(
            [
                Problem(records.file, f"file_name {n!a}", "it leads out of the folder", expected, cure)
                for n in located.outside
            ]
        )
    found = {}
    for image_id, image in records.images.items():
        name = located.found.get(image["file_name"], image["file_name"])
        found[image_id] = ImageRecord(image_id, name, folder, image["size"], image["extra"], numbered)
    if findings is not None:
        _note(located, found, records, findings)
    return found


def _note(located: LocatedFiles, found: Mapping[int, ImageRecord], records: CocoRecords, findings: Findings) -> None:
    missing = set(located.missing)
    near = {name: located.nearest(name) for name in located.missing[:_NEAREST]}
    first_use: dict[str, int] = {}
    twice: list[str] = []
    for image_id, record in found.items():
        name = record.file_name
        if name in missing:
            file = near.get(name)
            hint = f"The most similar file there is {file}: correct `file_name`" if file else "Correct `file_name`"
            cure = f"{hint} or the folder of the images, or leave the image out."
            findings.add(record.path, f"image {image_id}", MISSING_IMAGE, "a readable image", cure)
        elif name in located.ambiguous:
            files = located.ambiguous[name]
            reason = f"{named(files, 3)} all fit" if len(files) > 1 else f"{files[0]} stands for another image too"
            cure = f"Write the path of one file below {located.folder}."
            findings.add(record.path, f"image {image_id}", f"{MISSING_IMAGE}, and {reason}", "one file", cure)
        else:
            first = first_use.setdefault(os.path.realpath(record.path), image_id)
            twice += [f"images {first} and {image_id} are the same file, {name}"] if first != image_id else []
    if twice:
        findings.warnings.append(
            f"{records.file}: {named(twice, 3)}; each learns the other's objects as background: give a file one "
            "image record."
        )
    if located.found:
        stated, file = next(iter(located.found.items()))
        findings.warnings.append(
            f"{records.file}: {len(located.found)} image files have other names than the labels say and were found "
            f"below {located.folder} ({stated!r} is {file!r})."
        )
