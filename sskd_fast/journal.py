"""A journal of work done, which goes on where a killed process stopped."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SYNC_SECONDS = 1.0


class Journal:
    """A file of JSON objects, one a line, whose first line holds the key of what they depend on.

    records: what an earlier process wrote under the same key, without a line torn by a crash.  The file of another key
    is started anew.  Losing power costs the records of about a second; a killed process loses none.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.records, sound = _sound_records(path, key)
        if sound:
            os.truncate(path, sound)
            logger.info("%s: continuing after %d records", path, len(self.records))
        else:
            path.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Writes records, all at once as far as a crash allows."""
        self._file.write("".join(json.dumps(record) + "\n" for record in records))
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def remove(self) -> None:
        """Closes and deletes the file: the work is done and its result is in place."""
        self._file.close()
        self.path.unlink()


def parse_record(line: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _sound_records(path: Path, key: str) -> tuple[list[dict[str, Any]], int]:
    """The records before the first damaged line, and the bytes that they and the key fill; 0 for another key."""
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
