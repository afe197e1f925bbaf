"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)
os.umask(_UMASK)

_SPACE = "free some space and start again: with --resume, a run goes on from what it has saved"
_RIGHTS = "give a folder that you may write to"
_FOLDER = "a folder was expected: give another path, or remove the file that is in its place"
_CURES = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS, errno.EROFS: _RIGHTS,
    errno.ENOTDIR: _FOLDER, errno.EEXIST: _FOLDER, errno.EISDIR: "a file was expected: give another path",
}  # fmt: skip
# Answers of file systems that cannot flush to disk.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class WriteError(OSError):
    """A file that cannot be written; the message names it and the cure."""


def reason(error: OSError, path: Path | None = None) -> str:
    """The system's word on a file, in a line with the cure.  path: of the file, that of the error by default or if
    it is a folder on the way."""
    if error.errno is None:
        return str(error)
    on_the_way = path is not None and isinstance(error.filename, str) and Path(error.filename) in path.parents
    place = error.filename if on_the_way else path or error.filename or "writing"
    cure = _CURES.get(error.errno, "see to the file or its disk, and start again")
    return f"{place}: {error.strerror}; {cure}"


def write_atomically(path: Path, write: Callable[[Path], Any], *, keep: bool = False) -> None:
    """Lets `write` fill a file beside `path`, flushes it to disk and puts it in place: readers see the old file or the
    new one, whole. Folders are made; nothing stays behind where `write` raises.

    keep: a file that is there stays, even one that another process put there meanwhile: the first one wins.
    Raises WriteError in place of any OSError of the system.
    """
    try:
        _write_atomically(path, write, keep)
    except OSError as error:
        raise error if error.errno is None else WriteError(reason(error, path)) from error


def _write_atomically(path: Path, write: Callable[[Path], Any], keep: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        write(partial)
        with contextlib.suppress(OSError):  # of file systems without permissions
            partial.chmod(0o666 & ~_UMASK)  # what open() gives; some writers keep their files to themselves
        _flush(partial)
        if keep:
            _put(partial, path)
        else:
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # of a folder that cannot be written to
            partial.unlink()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise


def _put(partial: Path, path: Path) -> None:
    """Gives a file a name that no other has: by a hard link, which the first of several processes gets, or on file
    systems without them by a look and a move."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    except OSError:
        if not path.exists():
            os.replace(partial, path)


def remove_partial(folder: Path) -> None:
    """Removes what writers that were killed left half-written below a folder; no other process may write there."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def encoded(text: str) -> bytes:
    """UTF-8; bytes of file names that are none become escapes, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str, *, keep: bool = False) -> None:
    """UTF-8 text, see `encoded`, atomically; keep: see `write_atomically`."""
    write_atomically(path, lambda partial: partial.write_bytes(encoded(text)), keep=keep)


def write_json(path: Path, content: Any) -> None:
    """JSON, atomically."""
    write_text(path, json.dumps(content))


def finite(value: Any) -> Any:
    """Figures as JSON can hold them: rounded to a thousandth; None for NaN, if there was nothing to measure on."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value
