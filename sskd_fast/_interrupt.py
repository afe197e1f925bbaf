"""Handling of Ctrl-C and SIGTERM: a command ends with one line and status 130 or 143, no traceback, no orphans."""

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
    """Raised on SIGTERM, which containers and batch systems send to end a process."""


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """Signal handler that ends this process and its children at once, for times when there is nothing to save."""
    os.write(2, b"\ninterrupted\n")
    # PyTorch's data loader answers the death of a worker by an error, wherever the program is.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:  # else a killed child may outlive its parent for a moment
        with contextlib.suppress(ChildProcessError):  # the signal may have come while somebody else waited for it
            os.waitpid(child.pid or 0, 0)
    os._exit(128 + number)


def guard_start() -> None:
    """Makes a signal end the process with one line until its work begins. Call it before importing torch."""
    for number in _SIGNALS:
        signal.signal(number, end_at_once)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Within the block, the first signal raises KeyboardInterrupt or Terminated; a second one ends the process at once.

    Does not print OSErrors raised in other threads, because the code that uses those threads raises them again.  Does
    nothing outside the main thread.
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
    """Makes a worker process ignore Ctrl-C, which its parent gets too, and exit silently when the parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.excepthook = _unless_hung_up


def _unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook that is silent about a lost connection: an interrupted parent stops reading tensors midway."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
