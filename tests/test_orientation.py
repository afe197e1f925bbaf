"""Images turned by EXIF: the check reports which pixels the masks were drawn on before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sskd_fast.data.doctor import check_dataset
from sskd_fast.data.errors import DataError
from tests.broken_sets import sound_set


def turned(path: Path, orientation: int) -> None:
    """Gives an image file an orientation; its pixels stay as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)


def test_one_image_drawn_as_stored_leaves_no_doubt_about_the_others(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    turned(coco.images / "1.png", 6)  # 40 x 60 as stored and as stated
    assert not [w for w in check_dataset(coco.write(), coco.images) if "EXIF" in w]
    turned(coco.images / "2.png", 3)
    with pytest.raises(
        DataError,
        match=r"EXIF orientation: 1 images have an EXIF orientation that does not tell what their masks were drawn on "
        r"\(2\.png\), and 1 others were drawn on the pixels as stored; expected one way for the whole set\. Turn the",
    ):
        check_dataset(coco.write(), coco.images)


def test_images_that_leave_it_open_are_read_as_shown_with_a_warning(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    turned(coco.images / "2.png", 3)
    (warning,) = [w for w in check_dataset(coco.write(), coco.images) if "EXIF" in w]
    assert "1 images have an EXIF orientation" in warning and "(2.png); they are turned as it says. Turn" in warning
    turned(coco.images / "1.png", 6)
    coco.content["images"][0] |= {"height": 60, "width": 40}  # as shown
    coco.content["annotations"] = [a for a in coco.content["annotations"] if a["image_id"] != 1]
    assert not [w for w in check_dataset(coco.write(), coco.images) if "EXIF" in w]
