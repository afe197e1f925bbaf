"""Hashes of image sets: of names and bytes in their order, in memory that does not grow with the set."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sskd_fast.data.folder import ImageFolder
from sskd_fast.run import contents


def tar_of_images(path: Path, count: int) -> list[tuple[str, bytes]]:
    """Writes an archive of images of a pixel; returns its members."""
    members = []
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            Image.fromarray(np.full((1, 1, 3), number % 251, np.uint8)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
            members.append((f"{path.name}/{member.name}", buffer.getvalue()))
    return members


def test_the_hash_of_images_is_of_every_name_and_file_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_AT_ONCE", 4)  # 11 files: two times four, and three
    members = tar_of_images(tmp_path / "images.tar", 11)
    lines = "".join(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in members)
    assert contents.of_images(ImageFolder(tmp_path)) == hashlib.sha256(lines.encode()).hexdigest()[:16]


def test_hashing_takes_no_memory_for_images_that_wait(tmp_path: Path) -> None:
    tar_of_images(tmp_path / "images.tar", 6000)
    source = ImageFolder(tmp_path)
    contents.of_images(source)  # reads the list of members
    tracemalloc.start()
    contents.of_images(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6000 * 500  # all at once took 2 KB a file
