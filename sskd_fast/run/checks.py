"""Checks of a run before it starts: settings, device, operators, and the run folder."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from sskd_fast import _backend
from sskd_fast.folder_lock import FolderLock
from sskd_fast.run.basis import dotted, setting_changes, without_idle
from sskd_fast.settings import Config
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import load_config

T = TypeVar("T")


def run_folder(config: Config) -> Path:
    """The run folder."""
    return Path(config.output or f"runs/{config.data.name}")


def check_kept(config: Config, kept: Path) -> None:
    """Raises ConfigError if the kept run was started with another seed or other data, by its config.yaml."""
    trees = [without_idle(settings) for settings in (load_config([kept]), config)]
    changes = setting_changes(*(dict(dotted({key: tree[key] for key in ("seed", "data")})) for tree in trees))
    if changes:
        raise ConfigError(
            f"{kept} holds a run with another seed or other data ({'; '.join(changes)}), whose splits are in its "
            "folder: leave --seed and the data settings as they are to go on with it, or start a new run with --stage "
            "all and another --output"
        )


def device_of(config: Config) -> torch.device:
    """The device of a run.  Raises ConfigError for "cuda" or float16 without a GPU."""
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise ConfigError(
            "--device cuda: PyTorch finds no CUDA device; use --device cpu, or install a CUDA build and a driver"
        )
    if "float16" in (config.teacher.precision, config.student.precision) and not (found and config.device != "cpu"):
        raise ConfigError("precision: float16 is for GPUs; on a CPU, use float32 or bfloat16")
    return torch.device(config.device if config.device != "auto" else "cuda" if found else "cpu")


def prepare_operators(config: Config, device: torch.device) -> None:
    """Chooses the operators' backends, which may compile them, before training shows its progress."""
    try:
        for operator in _backend.OPERATORS:
            _backend.resolve(config.contrast.backend, device, operator)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"contrast.backend: {error}") from error


@contextlib.contextmanager
def owned_folder(folder: Path, fresh: bool, prepare: Callable[[], T]) -> Iterator[T]:
    """Locks the run folder for this process, and yields the result of `prepare`.  fresh: move an earlier run aside.

    If `prepare` fails, the earlier run is moved back, and a folder created here is removed.
    Raises FolderInUse, before anything is moved, if another process has the folder.
    """
    with contextlib.ExitStack() as held:
        lock = held.enter_context(FolderLock(folder))
        aside = keep_aside(lock) if fresh else None
        if aside is not None:
            held.enter_context(FolderLock(folder))
        try:
            prepared = prepare()
        except BaseException:
            if lock.made or aside is not None:
                shutil.rmtree(folder)
            if aside is not None:
                lock.folder = aside.rename(folder)
            raise
        if aside is not None:
            print(f"{folder} held an earlier run: it is now {aside}", file=sys.stderr)
        yield prepared


def keep_aside(lock: FolderLock) -> Path | None:
    """Moves the locked folder of an earlier run aside; returns its new path, or None if there was no run."""
    folder = lock.folder
    if not (folder / "config.yaml").exists() and not (folder / "splits").exists():
        return None
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    lock.folder = folder.rename(folder.with_name(f"{folder.name}.{number}"))
    return lock.folder
