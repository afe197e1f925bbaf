"""One process per run folder: a second start, stale locks, other machines, and colliding names."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sskd_fast.files import reason
from sskd_fast.folder_lock import LOCK, FolderInUse, FolderLock, Holder
from sskd_fast.run.__main__ import main
from sskd_fast.run.command_line import parser, resolve

TINY = ["data.embedded_labeled=4", "data.embedded_unlabeled=3", "data.embedded_val=3", "--max-steps", "1"]
HOLD = """
import os, sys, pathlib, time
os.register_at_fork(after_in_child=lambda: time.sleep(0.3))  # a child that lives before it lets go of the lock
from sskd_fast.folder_lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
if len(sys.argv) < 3 or os.fork():
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


def holder(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A running process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("more", [[], ["--resume"], ["--stage", "distill"], ["--seeds", "0,1"]])
def test_a_second_start_is_refused_before_anything_is_written(
    tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if "--seeds" not in more:
        (folder / "config.yaml").write_text("data: {embedded_labeled: 4, embedded_unlabeled: 3, embedded_val: 3}\n")
    with holder(folder) as process:
        before = contents(tmp_path)
        assert main([*more, "--output", str(folder), *TINY]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {folder}: process {process.pid}, since 20") and said.count("\n") == 1
        assert said.endswith("wait until it ends, or give another folder with --output\n")
        assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["run"]
        process.communicate("")


def test_a_killed_process_gives_its_folder_up_even_if_it_has_children(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holder(tmp_path, "fork")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: process {process.pid}, since") and said.count("\n") == 1
    assert "has ended; its lock is taken over" in said and not (tmp_path / LOCK).exists()
    assert process.stdin is not None
    process.stdin.close()


def without_locks(file: object) -> bool:
    return False


def test_without_locks_of_the_file_system_the_process_itself_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sskd_fast.folder_lock.lock_file", without_locks)
    here = Holder.here()
    (tmp_path / LOCK).write_text(json.dumps(asdict(here)))
    with pytest.raises(FolderInUse, match=f"process {os.getpid()}, since"):
        FolderLock(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for gone in (replace(here, pid=ended.pid), replace(here, started="1"), replace(here, boot="of last week")):
        (tmp_path / LOCK).write_text(json.dumps(asdict(gone)))
        FolderLock(tmp_path).release()
        assert "has ended; its lock is taken over" in capsys.readouterr().err


def test_the_lock_of_another_machine_is_refused_with_the_way_out(tmp_path: Path) -> None:
    other = replace(Holder.here(), host="gpu7", boot="another")
    (tmp_path / LOCK).write_text(json.dumps(asdict(other)))
    with pytest.raises(
        FolderInUse, match=rf"process {os.getpid()} on gpu7, .* remove {tmp_path / LOCK} and start again"
    ):
        FolderLock(tmp_path)
    container = replace(other, boot=Holder.here().boot)  # another host name on this machine
    (tmp_path / LOCK).write_text(json.dumps(asdict(container)))
    FolderLock(tmp_path).release()


def test_a_lock_that_is_a_dead_link_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to("gone/run.lock")
    words = f"{tmp_path / LOCK}: found a link to gone/run.lock, which cannot be opened; expected the lock file: remove"
    with pytest.raises(OSError, match=re.escape(words)) as caught:
        FolderLock(tmp_path)
    assert reason(caught.value) == str(caught.value)
    (tmp_path / LOCK).unlink()
    FolderLock(tmp_path).release()


def test_a_folder_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new") as lock:
        assert lock.made and lock.path.exists()
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def labels_at(path: Path) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return ["--labeled", str(path), "--images", str(path.parent), "--val", str(path), "--preset", "default"]


def test_default_folders_are_named_by_the_data_set_and_never_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def output(*arguments: str) -> str:
        return resolve(parser().parse_args(arguments)).output

    cells = labels_at(tmp_path / "cells" / "train" / "_annotations.coco.json")
    nuclei = labels_at(tmp_path / "nuclei" / "annotations" / "instances_train.json")
    others = labels_at(tmp_path / "more" / "cells" / "train" / "_annotations.coco.json")
    assert (output(*cells), output(*nuclei), output(*others)) == ("runs/cells", "runs/nuclei", "runs/cells")
    run = tmp_path / "runs" / "cells"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"data:\n  name: cells\n  labeled: {cells[1]}\n")
    assert output(*cells) == "runs/cells" and capsys.readouterr().err == ""
    named = output(*others)
    assert named.startswith("runs/cells-") and len(named) == len("runs/cells-") + 8
    assert (
        capsys.readouterr().err == f"runs/cells holds a run on {cells[1]}: this one, on {others[1]}, goes to {named}\n"
    )
    (tmp_path / named).mkdir()
    run.rename(tmp_path / "runs" / "moved")
    assert output(*others, "--resume") == named, "the run that is there is gone on with"
