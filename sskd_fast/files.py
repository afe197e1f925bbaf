"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_atomically(path: Path, write: Callable[[Path], Any], *, keep: bool = False) -> None:
    """Lets `write` fill a file beside `path`, flushes it to disk and puts it in place: readers see the old file or the
    new one, whole. Folders are made; nothing stays behind where `write` raises.

    keep: a file that is there stays, even one that another process put there meanwhile: the first one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        write(partial)
        partial.chmod(0o666 & ~_UMASK)  # what open() gives; some writers keep their files to themselves
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if keep:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Removes what writers that were killed left half-written below a folder; no other process may write there."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, keep: bool = False) -> None:
    """UTF-8 text, atomically; keep: see `write_atomically`."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"), keep=keep)


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
