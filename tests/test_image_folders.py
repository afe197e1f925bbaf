"""Real-life folders of images: all suffixes and links, and the count of skipped files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sskd_fast.data.errors import DataError
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.image_folders import IMAGE_SUFFIXES, is_image, list_images, pages_words

PICTURE = Image.new("RGB", (6, 4), (10, 200, 30))
FORMATS = {
    ".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".mpo": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".tga": "TGA",
    ".Tiff": "TIFF", ".dib": "DIB", ".pbm": "PPM", ".pcx": "PCX", ".qoi": "QOI", ".sgi": "SGI", "": "PNG",
}  # fmt: skip


def picture(path: Path, format: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.save(path, format)
    return path


@pytest.mark.parametrize(("suffix", "format"), FORMATS.items(), ids=lambda value: value or "none")
def test_every_suffix_that_pillow_reads_is_taken_and_read(tmp_path: Path, suffix: str, format: str) -> None:
    picture(tmp_path / f"photo{suffix}", format)
    folder = ImageFolder(tmp_path)
    assert folder.file_names == [f"photo{suffix}"] and folder.listing.passed == {}
    assert folder[0].image.shape == (3, 4, 6)
    red, green, blue = folder[0].image[:, 1, 2].tolist()
    assert abs(red - 10) < 12 and abs(green - 200) < 12 and abs(blue - 30) < 12


def test_usual_suffixes_are_those_of_formats_that_pillow_opens() -> None:
    Image.init()
    formats = {suffix: Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES}
    assert {suffix for suffix, format in formats.items() if format not in Image.OPEN} == set()


def test_what_is_not_taken_is_counted_by_reason(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("a.png", "scan.0001", "b", "sub/c.jp2"):
        picture(folder / name, "JPEG2000" if name.endswith("jp2") else "PNG")
    for name in ("notes.txt", "labels.json", "labels2.json", "LICENSE", "points.pcd", "plan.eps", "sub/Thumbs.db"):
        (folder / name).write_bytes(b"P6 no picture")
    picture(folder / "a.png.bak")
    picture(folder / ".trash" / "d.png")
    picture(folder / "._a.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    listing = list_images(folder)
    assert listing.names == ("a.png", "b", "scan.0001", "sub/c.jp2")
    assert listing.passed_words == (
        "12 passed over: hidden by a dot before the name: 2 (._a.png, .trash); images by their content but not by "
        "their suffix, to be renamed if they are wanted: 1 (a.png.bak); links that lead nowhere: 1 (gone.png); neither "
        "a file nor a folder: 1 (pipe.png); not images: 7 (.json 2, .db 1, .eps 1, .pcd 1, .txt 1 and 1 more)"
    )


def test_links_are_followed_to_every_folder_and_file_once(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    picture(folder / "a.png")
    picture(elsewhere / "deep" / "b.png")
    (folder / "all").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere / "deep")
    (elsewhere / "deep" / "round").symlink_to(elsewhere)
    (folder / "up").symlink_to(tmp_path)
    (folder / "copy.png").symlink_to(folder / "a.png")
    picture(tmp_path / "outside" / "c.png")
    (folder / "c.png").symlink_to(tmp_path / "outside" / "c.png")
    listing = list_images(folder)
    assert listing.names == ("a.png", "again/b.png", "c.png")
    assert listing.passed == {
        "links to what is taken already": ["all/deep", "again/round", "copy.png"],
        "links to a folder around this one": ["up"],
    }


def test_a_damaged_image_is_taken_to_be_reported_and_a_text_is_not(tmp_path: Path) -> None:
    (tmp_path / "broken.jfif").write_bytes(b"")
    (tmp_path / "readme").write_text("P6 is a format")
    assert is_image(tmp_path / "broken.jfif") and not is_image(tmp_path / "readme") and not is_image(tmp_path)


def test_a_folder_without_an_image_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"film")
    with pytest.raises(DataError, match=r"no image file in the folder \(1 passed over: not images: 1 \(\.mp4 1\)\);"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match=r"the folder does not exist; expected images that Pillow reads, such as \.png"):
        ImageFolder(tmp_path / "nowhere")


def test_of_several_pages_or_frames_the_first_is_taken_and_said(tmp_path: Path) -> None:
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    first, *others = (Image.new("RGB", (6, 4), color) for color in colors)
    for name in ("stack.tif", "film.gif"):
        first.save(tmp_path / name, save_all=True, append_images=others)
    first.save(tmp_path / "one.tif")
    folder = ImageFolder(tmp_path)
    assert [folder[i].image[:, 0, 0].tolist() for i in range(len(folder))] == [[200, 0, 0]] * 3
    assert pages_words(record.path for record in folder.records) == (
        "2 files hold several pages or frames (film.gif 3, stack.tif 3): only the first is taken"
    )
    assert pages_words([tmp_path / "one.tif"]) == ""
