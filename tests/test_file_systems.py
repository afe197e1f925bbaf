"""Full or read-only disks, file systems without links, wrong paths: one line with the cure."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sskd_fast.evaluate import main as evaluate
from sskd_fast.files import WriteError, write_json, write_text
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run.__main__ import main
from sskd_fast.study.parts import take_over
from sskd_fast.train.checkpoint import TrainingState
from sskd_fast.train.cost import Cost
from tests.described import save_described

TINY = [
    "--preset", "smoke", "--stage", "adapt", "--max-steps", "1", "data.embedded_labeled=3", "data.embedded_unlabeled=2",
    "data.embedded_val=2", "pseudo_labels.folds=2", "train.threads=1",
]  # fmt: skip
SPACE = "free some space and start again: with --resume, a run continues from what it has saved"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system in memory with options; skips the test if that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        flags = f"remount,{options}" if mounted else options
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", flags, "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_files_on_a_full_disk_name_it_and_leave_nothing(disk: Callable[..., Path]) -> None:
    place = disk("size=64k")
    model = MaskTransformer(ModelConfig(channels=(64,), blocks=(1,), width=64, mask_width=8, heads=1), 1)
    with pytest.raises(WriteError, match=rf"{place}/m\.safetensors: No space left on device; {SPACE}"):
        save_described(place / "m.safetensors", model, ["disc"])
    state = TrainingState(place / "m.state.pt", "key", False)
    with pytest.raises(WriteError, match=rf"{place}/m\.state\.pt: No space left on device; {SPACE}"):
        state.save(1, {"model": nn.Linear(200, 200)}, torch.optim.SGD([torch.zeros(1)]), Cost())
    with pytest.raises(WriteError, match=rf"{place}/m\.json: No space left on device; {SPACE}"):
        write_json(place / "m.json", "x" * 100_000)
    assert files_in(place) == []


@pytest.mark.parametrize("size", ["40k", "5m"])
def test_a_run_on_a_full_disk_goes_on_once_there_is_space(
    disk: Callable[..., Path], size: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up while images, or models, are written."""
    folder = disk(f"size={size}") / "run"
    assert main(["--output", str(folder), *TINY]) == 2
    said = capfd.readouterr().err
    assert f"No space left on device; {SPACE}" in said.splitlines()[-1] and "Traceback" not in said
    assert not [name for name in files_in(folder) if name.endswith(".partial") or name == "run.lock"]
    disk("size=200m")
    assert main(["--output", str(folder), "--resume", *TINY]) == 0
    assert (folder / "checkpoints" / "adapted_teacher.safetensors").exists()


def test_folders_that_cannot_be_written_to_are_named_with_the_cure(
    disk: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk("size=1m")
    (place / "run").mkdir()
    disk("ro")
    file = tmp_path / "file"
    file.write_text("mine")
    for folder, words in (
        (place / "run", f"{place}/run/run.lock: Read-only file system; give a folder that you may write to"),
        (place / "new", f"{place}/new: Read-only file system; give a folder that you may write to"),
        (file, f"{file}: File exists; a folder was expected: give another path, or remove the file"),
        (file / "run", f"{file}/run: Not a directory; a folder was expected: give another path, or remove the file"),
    ):
        for more in ([], ["--seeds", "0,1"]):
            assert main(["--output", str(folder), *more, *TINY]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"error: {words}") and said.count("\n") == 1
    assert file.read_text() == "mine" and files_in(place) == []


def test_a_folder_of_another_user_is_named_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write to every folder")
    tmp_path.chmod(0o500)
    assert main(["--output", str(tmp_path / "run"), *TINY]) == 2
    assert f"{tmp_path}/run: Permission denied; give a folder that you may write to" in capsys.readouterr().err


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_links_of_the_file_system_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.link", no_links)
    monkeypatch.setattr("os.symlink", no_links)
    for text in ("first", "second"):
        write_text(tmp_path / "split.txt", text, keep=True)
    assert (tmp_path / "split.txt").read_text() == "first" and files_in(tmp_path) == ["split.txt"]
    before = tmp_path / "before"
    for name in ("checkpoints/a.safetensors", "cache/b.json"):
        write_text(before / name, name)
    take_over(before, tmp_path / "after")
    assert files_in(tmp_path / "after") == ["a.safetensors", "b.json"]


def test_other_commands_name_the_file_too(plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    data = ["--val", str(plates_run.parent / "val.json"), "--images", str(plates_run.parent / "val")]
    assert evaluate([str(plates_run), *data, "--json", str(tmp_path / "file" / "a.json")]) == 2
    assert (
        f"{tmp_path}/file: File exists; a folder was expected: give another path, or remove the file"
        in capsys.readouterr().err
    )
