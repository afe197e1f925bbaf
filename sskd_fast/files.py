"""Atomic writes of files, and errors that name the cure."""

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

_SPACE = "free some space and start again: with --resume, a run continues from what it has saved"
_RIGHTS = "give a folder that you may write to"
_FOLDER = "a folder was expected: give another path, or remove the file that is in its place"
_CURES = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS, errno.EROFS: _RIGHTS,
    errno.ENOTDIR: _FOLDER, errno.EEXIST: _FOLDER, errno.EISDIR: "a file was expected: give another path",
}  # fmt: skip
# Errors of file systems that do not support fsync.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class WriteError(OSError):
    """A file that cannot be written; the message names it and the cure."""


def reason(error: OSError, path: Path | None = None) -> str:
    """The system's error message for a file in one line, with the cure.

    path: the file; by default, or if the error is about one of its parent folders, the error's own path.
    """
    if error.errno is None:
        return str(error)
    on_the_way = path is not None and isinstance(error.filename, str) and Path(error.filename) in path.parents
    place = error.filename if on_the_way else path or error.filename or "writing"
    cure = _CURES.get(error.errno, "see to the file or its disk, and start again")
    return f"{place}: {error.strerror}; {cure}"


def write_atomically(path: Path, write: Callable[[Path], Any], *, keep: bool = False) -> None:
    """Lets `write` fill a temporary file beside `path`, flushes it to disk and moves it into place.

    Readers see the complete old file or the complete new one. Parent folders are created. Nothing is left behind if
    `write` raises.

    keep: do not replace an existing file, even if another process creates it meanwhile; the first writer wins.
    Raises WriteError in place of an OSError of the system.
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
        with contextlib.suppress(OSError):  # file systems without permissions
            partial.chmod(0o666 & ~_UMASK)  # as open() would; some writers make private files
        _flush(partial)
        if keep:
            _put(partial, path)
        else:
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # read-only folders
            partial.unlink()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise


def _put(partial: Path, path: Path) -> None:
    """Moves a file to a path that is free, or leaves the file that is there.

    A hard link settles which of several processes comes first. File systems without hard links get a check and a move.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    except OSError:
        if not path.exists():
            os.replace(partial, path)


def remove_partial(folder: Path) -> None:
    """Removes partial files that killed writers left below a folder. No other process may be writing there."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def encoded(text: str) -> bytes:
    """The text as UTF-8. Undecodable bytes of file names (surrogates) become escapes, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str, *, keep: bool = False) -> None:
    """Writes text as UTF-8 atomically; see `encoded`, and `write_atomically` for `keep`."""
    write_atomically(path, lambda partial: partial.write_bytes(encoded(text)), keep=keep)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(content))


def finite(value: Any) -> Any:
    """Figures as JSON can hold them: floats rounded to three decimals, None for NaN (nothing to measure on) and inf."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value
