"""Files in tar archives, as in WebDataset, under paths that continue into the archive: images-000.tar/17.jpg."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from sskd_fast.data.errors import DataError, Problem

SUFFIX = ".tar"
# Archives whose member lists stay in memory, about 50 bytes per member.
_ARCHIVES = 4096


def tar_of(path: Path) -> Path | None:
    """The archive that a path continues into; None for the path of a plain file."""
    return next((parent for parent in path.parents if parent.suffix == SUFFIX and parent.is_file()), None)


def open_file(path: Path) -> io.BufferedReader | io.BytesIO:
    """Opens a file or a member of an archive for reading.  Raises FileNotFoundError if it is missing."""
    tar = tar_of(path)
    if tar is None:
        return path.open("rb")
    start, size = _members(tar).place(path.relative_to(tar).as_posix())
    with tar.open("rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(size))


def file_size(path: Path) -> int | None:
    """The size in bytes of a file or a member of an archive; None if it is missing."""
    tar = tar_of(path)
    if tar is None:
        return os.path.getsize(path) if os.path.isfile(path) else None
    try:
        return _members(tar).place(path.relative_to(tar).as_posix())[1]
    except FileNotFoundError:
        return None


def member_names(tar: Path) -> list[str]:
    """The sorted names of the files in an archive, without hidden ones.  Raises DataError if it cannot be read."""
    names = [name.decode() for name in _members(tar).names]
    return [name for name in names if not PurePosixPath(name).name.startswith(".")]


@dataclass(frozen=True)
class _Members:
    """Index of an archive.  names: sorted, UTF-8.  starts, sizes: in bytes."""

    names: NDArray[np.bytes_]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def place(self, name: str) -> tuple[int, int]:
        """The first byte and the length of a member.  Raises FileNotFoundError if there is none of this name."""
        wanted = name.encode()
        at = int(np.searchsorted(self.names, np.bytes_(wanted)))
        if at == len(self.names) or self.names[at] != wanted:
            raise FileNotFoundError(name)
        return int(self.starts[at]), int(self.sizes[at])


def _members(tar: Path) -> _Members:
    status = tar.stat()
    return _read_members(tar, status.st_mtime_ns, status.st_size)


@lru_cache(_ARCHIVES)
def _read_members(tar: Path, changed: int, size: int) -> _Members:
    try:
        members = sorted(_files(tar))
    except (tarfile.TarError, EOFError) as error:
        found, cure = f"the archive cannot be read ({error})", "Replace it, or move it out of the folder."
        raise DataError([Problem(tar, "", found, "a tar archive, not compressed", cure)]) from None
    names, starts, sizes = zip(*members, strict=True) if members else ((), (), ())
    return _Members(np.array(names, np.bytes_), np.array(starts, np.int64), np.array(sizes, np.int64))


def _files(tar: Path) -> Iterator[tuple[bytes, int, int]]:
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            if member.isreg():
                yield PurePosixPath(member.name).as_posix().encode(), member.offset_data, member.size
