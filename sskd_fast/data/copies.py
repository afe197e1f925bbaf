"""Image files of the same content, whatever their names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from sskd_fast.data.pixels import in_threads
from sskd_fast.data.tars import file_size, open_file


def same_content(first: Iterable[Path], second: Iterable[Path]) -> dict[Path, Path]:
    """Files of `second` with the bytes of a file of `first` -> that file; only files of equal size are read."""
    kept, asked = dict.fromkeys(first), dict.fromkeys(second)
    by_size = _by_size(kept)
    asked_by_size = _by_size(asked)
    sizes = by_size.keys() & asked_by_size.keys()
    candidates = [path for size in asked_by_size if size in sizes for path in asked_by_size[size]]
    twins = [path for size in sizes for path in by_size[size]]
    by_hash: dict[str, Path] = {}
    for digest, path in zip(in_threads(content_hash, twins), twins, strict=True):
        by_hash.setdefault(digest, path)
    hashes = zip(candidates, in_threads(content_hash, candidates), strict=True)
    return {path: by_hash[digest] for path, digest in hashes if digest in by_hash}


def copies(paths: Iterable[Path]) -> dict[Path, Path]:
    """Files with the bytes of an earlier one -> the first of these; only files of equal size are read."""
    alike = [path for group in _by_size(dict.fromkeys(paths)).values() if len(group) > 1 for path in group]
    first: dict[str, Path] = {}
    digests = zip(alike, in_threads(content_hash, alike), strict=True)
    return {path: first[digest] for path, digest in digests if first.setdefault(digest, path) != path}


def _by_size(paths: Iterable[Path]) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        if (size := file_size(path)) is not None:
            found[size].append(path)
    return found


def content_hash(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
