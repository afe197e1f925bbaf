"""The circumstances of a measurement: machine, versions, commit and date."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import torch

from sskd_fast import __version__
from sskd_fast.exported.parity import machine

_PACKAGE = Path(__file__).parent.parent


def circumstances(device: str) -> dict[str, str]:
    """ "machine", "commit" and "date" (UTC); device: as in the run's settings."""
    gpu = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else ""
    words = ", ".join(part for part in (gpu, machine(), f"torch {torch.__version__}") if part)
    return {"machine": words, "commit": commit(), "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")}


def commit() -> str:
    """The commit of the checkout, "with changes" if it has any; the package's version without a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", str(Path(__file__).with_name("tables.py"))):
            return f"version {__version__}"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
