"""The findings of a step so far, in a JSON file that is rewritten as a whole each time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent


class Record:
    """Findings by name. folder: with the files of earlier steps.  dry: True to run at a tiny size on the CPU."""

    def __init__(self, file: Path, folder: Path, *, dry: bool) -> None:
        self.file, self.folder, self.dry = file, folder, dry
        self.found: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        """The device that the step computes on."""
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def backends(self) -> tuple[str, ...]:
        """The GPU backends that can run here: only Triton in the interpreter."""
        return ("triton",) if self.dry else ("triton", "cuda")

    def put(self, **found: Any) -> None:
        """Adds findings and writes the file."""
        self.found |= found
        write_json(self.file, self.found)

    def of_step(self, name: str) -> dict[str, Any]:
        """Findings of an earlier step of the same call; empty if it left no file."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            return {}
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("found", {})
        return found


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all, one line per entry and per row of a list, for readable diffs."""

    def lines(value: Any, depth: int) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "\n]"
        if isinstance(value, dict) and value and depth < 2:
            entries = (f"{json.dumps(name)}: {lines(entry, depth + 1)}" for name, entry in value.items())
            return "{\n" + ",\n".join(entries) + "\n}"
        return json.dumps(value)

    partial = file.with_suffix(".partial")
    partial.write_text(lines(content, 0) + "\n", encoding="utf-8")
    os.replace(partial, file)


def said(command: Sequence[str]) -> str:
    """The output of a program; "" if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def reason(error: BaseException) -> str:
    """An error as one line, short enough for a page."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:300]}"
