"""Image files with the same content under any names.

Bytes are compared if nothing is decoded: at the start of a run, and when splits are drawn.  Decoding all images there
would take as long as the check, which hashes the pixels of each image that it reads anyway.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sskd_fast.data.pixels import in_threads
from sskd_fast.data.tars import file_size, open_file


def same_content(first: Iterable[Path], second: Iterable[Path]) -> dict[Path, Path]:
    """Maps files of `second` to the file of `first` with the same bytes.  Reads only files of equal size."""
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
    """Maps files to the first earlier file with the same bytes.  Reads only files of equal size."""
    alike = [path for group in _by_size(dict.fromkeys(paths)).values() if len(group) > 1 for path in group]
    first: dict[str, Path] = {}
    digests = zip(alike, in_threads(content_hash, alike), strict=True)
    return {path: first[digest] for path, digest in digests if first.setdefault(digest, path) != path}


def pixel_hash(pixels: NDArray[np.uint8]) -> str:
    """A hash of an image (H, W) or (H, W, 3) uint8; equal for a grey image with one and with three channels."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def same_pixels(first: Mapping[Path, str], second: Mapping[Path, str]) -> dict[Path, Path]:
    """Maps files of `second` to the file of `first` with the same pixels.  first, second: path -> `pixel_hash`."""
    by_hash: dict[str, Path] = {}
    for path, digest in first.items():
        by_hash.setdefault(digest, path)
    return {path: by_hash[digest] for path, digest in second.items() if digest in by_hash}


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
