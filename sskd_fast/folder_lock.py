"""A lock that lets one process at a time use a folder, ends with that process, and names it to the others."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

LOCK = "run.lock"
# Errors of file systems that do not support locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Seconds to wait for a child that was forked right before its parent ended to drop the lock; seconds between two tries.
_LET_GO, _LOOK = 10.0, 0.05
_held: set[IO[str]] = set()


class FolderInUse(OSError):
    """Raised for a folder that another process writes to."""


def lock_file(file: IO[str]) -> bool:
    """Locks an open file for this process until it is closed; False if its file system has no locks.

    Raises BlockingIOError if another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder.

    boot: boot id of its machine, which containers share.  started: start of the process in clock ticks since that boot.
    Both are "" on a system without /proc.  since: local time at which it took the folder, as text.
    """

    pid: int
    host: str
    boot: str
    started: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(os.getpid(), socket.gethostname(), _boot(), _start_of(os.getpid()), now)

    @property
    def is_of_this_machine(self) -> bool:
        """True if the process, if alive, is visible from here."""
        return self.host == socket.gethostname() or (self.boot != "" and self.boot == _boot())

    @property
    def is_gone(self) -> bool:
        """True if the process is known to have ended: its pid is free or belongs to another process."""
        if not self.is_of_this_machine:
            return False
        if self.boot != _boot():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return self.started != _start_of(self.pid)

    def __str__(self) -> str:
        place = "" if self.is_of_this_machine else f" on {self.host}"
        return f"process {self.pid}{place}, since {self.since},"


class FolderLock:
    """Holds a folder, created if missing, until the context or the process ends.

    made: True if the lock created the folder; it is then removed at the end if it is empty.  The lock of a process
    that has ended on this machine is taken over, with a line on stderr.
    Raises FolderInUse, in one line with the cure, if another process holds the folder or if a process on another
    machine left its lock there. Raises OSError if the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self.made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = self._taken()
        _held.add(self._file)
        try:
            self._file.truncate(0)
            json.dump(asdict(Holder.here()), self._file)
            self._file.flush()
        except OSError:
            self.release()
            raise

    @property
    def path(self) -> Path:
        """The path of the lock file."""
        return self.folder / LOCK

    def _taken(self) -> IO[str]:
        """The lock file, open and locked.  Raises FolderInUse."""
        until = time.monotonic() + _LET_GO
        while True:  # retry if the holder has ended since the file was opened here, if it removed the file or not
            with contextlib.ExitStack() as opened:
                file = opened.enter_context(self._opened())
                try:
                    locked = lock_file(file)
                except BlockingIOError:
                    holder = _holder_in(file)
                    if holder is None or not holder.is_gone or time.monotonic() > until:
                        raise self._in_use(holder) from None
                    time.sleep(_LOOK)
                    continue
                if _is_at(file, self.path):
                    self._check(_holder_in(file), locked)
                    opened.pop_all()
                    return file

    def _opened(self) -> IO[str]:
        try:
            return self.path.open("a+", encoding="utf-8")
        except OSError as error:
            if not self.path.is_symlink():
                raise
            found = f"found a link to {self.path.readlink()}, which cannot be opened"
            raise OSError(f"{self.path}: {found}; expected the lock file: remove the link and start again") from error

    def _check(self, holder: Holder | None, locked: bool) -> None:
        """Raises FolderInUse unless the holder named in the file has ended.  locked: True if this process locked it."""
        if holder is None:
            return
        if not holder.is_of_this_machine:
            raise FolderInUse(
                f"{self.folder}: {holder} has been writing there and is not visible from this machine; if it has "
                f"ended, remove {self.path} and start again, else give another folder with --output"
            )
        if not locked and not holder.is_gone:
            raise self._in_use(holder)
        print(f"{self.folder}: {holder} wrote there and has ended; its lock is taken over", file=sys.stderr)

    def _in_use(self, holder: Holder | None) -> FolderInUse:
        return FolderInUse(
            f"{self.folder}: {holder or 'another process'} is writing there; expected one process at a time: wait "
            "until it ends, or give another folder with --output"
        )

    def release(self) -> None:
        """Releases the folder."""
        if _is_at(self._file, self.path):
            self.path.unlink()
        _held.discard(self._file)
        with contextlib.suppress(OSError):  # a full disk raises again on closing
            self._file.close()
        if self.made:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _is_at(file: IO[str], path: Path) -> bool:
    """True if an open file is the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _holder_in(file: IO[str]) -> Holder | None:
    """The holder named in a lock file; None if it names none, as right after its creation."""
    file.seek(0)
    try:
        return Holder(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _start_of(pid: int) -> str:
    """The start time of a process: field 22 of its stat, which follows a name in brackets that may hold spaces."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _leave_to_parent() -> None:
    """Drops the locks in a forked process, so that it cannot outlive its parent with them."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
