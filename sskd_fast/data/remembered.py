"""Passed checks, remembered in the user's cache folder until their input changes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from sskd_fast import _env
from sskd_fast.files import write_json


def check_key(contents: Iterable[object], files: Iterable[Path], options: object) -> str:
    """The name of a check: a hash of label contents, of sizes and times of image files, of options and of the code.

    Labels are hashed by content: they are small, and tools may rewrite them unchanged or keep an old time.  Hashing
    images would read them whole, which a remembered check avoids.  Their inode and change time (`st_ctime`) reveal even
    a tool that restores the modification time.  Silent disk corruption goes unnoticed, and so do changes on a file
    system without these fields.  A move or a new link only makes the check run again.
    """
    digest = hashlib.sha256(_code().encode())
    for value in (options, *contents):
        digest.update(json.dumps(value, sort_keys=True, default=str).encode())
    for path in files:
        try:
            status = path.stat()
            seen = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            digest.update(f"{path.resolve()} {seen}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{path} is missing\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def remembered(key: str, work: Callable[[], list[str]]) -> list[str]:
    """The warnings of a check: remembered under this key, else from `work`, which raises if it finds problems.

    Only passed checks are remembered.  If the cache folder is not writable, the check simply runs again next time.
    """
    file = _env.cache_folder() / "checks" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return list(json.loads(file.read_bytes()))
    warnings = work()
    with contextlib.suppress(OSError):
        write_json(file, warnings)
    return warnings


@functools.cache
def _code() -> str:
    """A hash of the checking code, so that a new version checks again."""
    package = Path(__file__).parents[1]
    sources = [*(package / "data").rglob("*.py"), *(package / "rle").glob("*.py"), package / "scalars.py"]
    content = [source.read_bytes() for source in sorted(sources)]
    return hashlib.sha256(b"".join(content)).hexdigest()
