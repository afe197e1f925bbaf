"""A run whose second rank is killed once a training state is there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from sskd_fast import _env
from sskd_fast.run.__main__ import main


def kill_once_there(path: Path) -> None:
    """Ends this process, without a word, as soon as a file is there."""
    look = threading.Event()
    while not path.exists():
        look.wait(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(state: Path, arguments: Sequence[str]) -> int:
    """The exit status of a run, of the ranks that live to its end."""
    if _env.rank() == 1:
        threading.Thread(target=kill_once_there, args=(state,), daemon=True).start()
    return main(arguments)
