"""A run by torchrun whose second rank is killed once a training state is there: killed_rank.py STATE ARGUMENTS..."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from sskd_fast import _env
from sskd_fast.run.__main__ import main


def kill_once_there(path: Path) -> None:
    """Ends this process, without a word, as soon as a file is there."""
    look = threading.Event()
    while not path.exists():
        look.wait(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if _env.rank() == 1:
        threading.Thread(target=kill_once_there, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.exit(main(sys.argv[2:]))
