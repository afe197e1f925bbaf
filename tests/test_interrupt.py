"""Ctrl-C and SIGTERM at any moment: one line, the signal's exit status, no traceback, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sskd_fast.run.__main__ import main

TINY = [
    "--preset", "smoke", "--stage", "adapt", "data.embedded_labeled=3", "data.embedded_unlabeled=2",
    "data.embedded_val=2", "pseudo_labels.folds=2", "train.threads=1", "train.save_every=1", "data.workers=2",
    "pseudo_labels.fold_steps=0.1", "stages.adapted_teacher.steps=1",
]  # fmt: skip


def started(*arguments: str) -> subprocess.Popen[str]:
    """A command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("module", ["run", "study", "predict"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_the_imports_is_a_line(module: str, number: signal.Signals) -> None:
    process = started("-X", "importtime", "-m", f"sskd_fast.{module}", "--help")
    assert process.stderr is not None
    while "torch." not in (line := process.stderr.readline()):
        assert line, "the process ended before it imported torch"
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in said and [line for line in said.splitlines() if "import time" not in line][-1:] == [
        "interrupted"
    ]


def test_a_second_signal_ends_a_process_whose_dead_workers_raise_an_error() -> None:
    """As those of PyTorch's data loader do, by a handler of SIGCHLD."""
    script = """
import multiprocessing, signal, time
from sskd_fast import _interrupt

def fails(number, frame):
    raise RuntimeError("a worker was killed")

signal.signal(signal.SIGCHLD, fails)
for _ in range(3):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)).start()
_interrupt.end_at_once(signal.SIGINT)
"""
    process = started("-c", script)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said == "\ninterrupted\n"


@pytest.mark.parametrize(("signals", "status"), [([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)])
def test_an_interrupted_training_leaves_its_state_and_no_process(
    tmp_path: Path, signals: list[signal.Signals], status: int
) -> None:
    folder = tmp_path / "run"
    process = started("-m", "sskd_fast.run", "--output", str(folder), *TINY)
    state = folder / "checkpoints" / "supervised_teacher.state.pt"
    while not state.exists():
        assert process.poll() is None, process.communicate()[1]
        os.sched_yield()
    for number in signals:
        os.killpg(process.pid, number)
    said = process.communicate()[1]
    assert process.returncode == status and "Traceback" not in said
    assert "\ninterrupted" in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert state.exists()
    if len(signals) == 1:  # the state of the other case is the same
        assert main(["--output", str(folder), "--resume", *TINY]) == 0
