"""Ranks of a job as processes forked from one that has imported the package: it is imported once, not once a rank."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Seconds after which ranks that wait for one another are killed.
_PATIENCE = 400
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["sskd_fast.run.__main__", "sskd_fast.train.loop", "joint_gradients", "sharded_training"])


@dataclass(frozen=True)
class Ended:
    """Exit status of every rank, negative for a signal, and all that they wrote to stderr."""

    statuses: list[int | None]
    stderr: str


def ranks_of(
    count: int, work: Callable[..., object], *arguments: Any, log: Path, environment: Mapping[str, str] | None = None
) -> Ended:
    """Has so many ranks do some work, as a launcher would start them; log: where they write."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        _FORKS.Process(
            target=_be_rank,
            args=({**job, **(environment or {}), "RANK": str(n), "LOCAL_RANK": str(n)}, log, work, arguments),
        )
        for n in range(count)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    waiting = [n for n, process in enumerate(processes) if process.is_alive()]
    for n in waiting:
        processes[n].kill()
    assert not waiting, f"ranks {waiting} still waited after {_PATIENCE} s: {log.read_text()[-3000:]}"
    return Ended([process.exitcode for process in processes], log.read_text())


def _be_rank(
    environment: Mapping[str, str], log: Path, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    """Ends with the exit status that the work returns, if it returns one."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(work(*arguments))  # type: ignore[arg-type]
