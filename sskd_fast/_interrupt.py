"""Ctrl-C and SIGTERM end a command with a line and exit status 130 or 143, at any moment: no traceback, no orphans."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which containers and batch systems end a process."""


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """Ends this process and those it has started.  A handler for moments in which there is nothing to save."""
    os.write(2, b"\ninterrupted\n")
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + number)


def guard_start() -> None:
    """To be called before a command imports torch: an interruption until its work begins ends it with a line."""
    for number in _SIGNALS:
        signal.signal(number, end_at_once)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """For the work of a command: the first signal raises KeyboardInterrupt or Terminated, a second one ends it at once.

    Errors of files in other threads, which their users raise once more, are not printed.  Does nothing in a thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, _raise) for number in _SIGNALS}
    hook, threading.excepthook = threading.excepthook, _quiet
    try:
        yield
    finally:
        threading.excepthook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, end_at_once)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _quiet(failed: threading.ExceptHookArgs) -> None:
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def leave_to_parent(worker: int = 0) -> None:
    """To be called in a worker process: its parent, which Ctrl-C in a terminal reaches too, ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.excepthook = _unless_hung_up


def _unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For the thread that hands tensors to the parent, which an interrupted parent may leave halfway."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
