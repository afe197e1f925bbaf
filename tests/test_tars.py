"""Images in tar archives: listed, read, compared and labelled like those in a folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sskd_fast.data.copies import copies, same_content
from sskd_fast.data.embedded import write_scenes
from sskd_fast.data.errors import DataError
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.tars import file_size, open_file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """5 images in a folder; in another one, two archives with 2 of them each, and the last one as it is."""
    write_scenes(tmp_path, "plain", "target", 5, seed=1)
    files = sorted((tmp_path / "plain").iterdir())
    packed = tmp_path / "packed"
    packed.mkdir()
    for number in range(2):
        with tarfile.open(packed / f"{number}.tar", "w") as tar:
            for file in files[2 * number : 2 * number + 2]:
                tar.add(file, f"./{file.name}")
            for name in ("labels.json", "._hidden.png"):
                tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
            for name, kind in (("folder.png", tarfile.DIRTYPE), ("link.png", tarfile.SYMTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, files[0].name
                tar.addfile(member)
    (packed / files[4].name).write_bytes(files[4].read_bytes())
    return tmp_path


def test_images_in_archives_are_those_of_the_folder(images: Path) -> None:
    plain, packed = ImageFolder(images / "plain"), ImageFolder(images / "packed")
    names = plain.file_names
    assert packed.file_names == sorted([names[4], *(f"{n // 2}.tar/{names[n]}" for n in range(4))])
    by_name = {Path(name).name: index for index, name in enumerate(packed.file_names)}
    assert packed.listing.passed == {} and file_size(images / "packed" / "0.tar" / "link.png") is None
    for own_index, name in enumerate(names):
        index = by_name[name]
        assert packed.size(index) == plain.size(own_index)
        assert np.array_equal(packed.pixels(index), plain.pixels(own_index))
        path, own = packed.records[index].path, plain.records[own_index].path
        assert open_file(path).read() == own.read_bytes() and file_size(path) == own.stat().st_size


def test_copies_are_found_in_archives(images: Path) -> None:
    plain, packed = ([r.path for r in ImageFolder(images / name).records] for name in ("plain", "packed"))
    own = {path.name: path for path in plain}
    assert same_content(plain, packed) == {path: own[path.name] for path in packed}
    assert copies([*plain, packed[0]]) == {packed[0]: own[packed[0].name]}


def test_what_is_not_there_is_named(images: Path) -> None:
    folder = ImageFolder(images / "packed")
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        open_file(images / "packed" / "0.tar" / "x.png")
    assert file_size(images / "packed" / "0.tar" / "x.png") is None
    (images / "packed" / "0.tar").unlink()
    with pytest.raises(DataError, match=r"0\.tar/.*: the image file does not exist"):
        folder.pixels(0)
    (images / "packed" / "0.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"0\.tar: the archive cannot be read .*; expected a tar archive, not compr"):
        ImageFolder(images / "packed")
