"""A journal of finished work, so that a restarted process continues where a killed one stopped."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from sskd_fast.folder_lock import lock_file

logger = logging.getLogger(__name__)

SYNC_SECONDS = 1.0


class JournalInUse(OSError):
    """Raised for a journal that another process writes."""


class Journal:
    """A JSON Lines file whose first line holds a key for all that the records depend on.

    records: records that an earlier process wrote under the same key; a line cut off by a crash is dropped.  A file
    with another key is started afresh.  A power failure loses about a second of records, a killed process none.
    The file is locked until it is closed. Raises JournalInUse if another process holds it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(path)
        self.records, sound = _sound_records(path, key)
        self._file.truncate(sound)
        if sound:
            logger.info("%s: continuing after %d records", path, len(self.records))
        else:
            self._file.write(json.dumps({"key": key}) + "\n")
            self._file.flush()
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends records in one write."""
        self._file.write("".join(json.dumps(record) + "\n" for record in records))
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def remove(self) -> None:
        """Deletes and closes the file. Call it once the work is done and its result is in place."""
        self.path.unlink()
        self._file.close()


def _locked(path: Path) -> TextIO:
    """The file, open for appending and locked."""
    file = path.open("a", encoding="utf-8")
    try:
        lock_file(file)
    except BlockingIOError:
        file.close()
        raise JournalInUse(
            f"{path.parent}: another process is writing to this folder (it holds {path.name}); expected one at a "
            "time; wait until it ends, or choose another folder"
        ) from None
    if os.fstat(file.fileno()).st_nlink:
        return file
    # Another process finished and deleted the file after it was opened here.
    file.close()
    return _locked(path)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None if it is anything else."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _sound_records(path: Path, key: str) -> tuple[list[dict[str, Any]], int]:
    """The records before the first damaged line, and the size in bytes of them and the key; 0 if the key differs."""
    if not path.exists():
        return [], 0
    header, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    if parse_record(header) != {"key": key}:
        return [], 0
    records, sound = [], len(header) + 1
    for line in lines:
        record = parse_record(line)
        if record is None:
            break
        records.append(record)
        sound += len(line) + 1
    return records, sound
