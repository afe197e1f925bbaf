"""Published data sets in their own folders: instances, groups, classes, and messages on faulty ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

from sskd_fast.data.ade20k import CLASSES as ADE_CLASSES
from sskd_fast.data.ade20k import Ade20k
from sskd_fast.data.cityscapes import Cityscapes
from sskd_fast.data.errors import DataError
from sskd_fast.data.layouts import coco_files, open_sets
from sskd_fast.data.views import Views, draw_views
from tests.official_layouts import Scene, write_ade20k, write_cityscapes, write_coco


def masks_of(truth: dict[str, Any], image_id: int) -> list[tuple[int, int, np.ndarray]]:
    """(category id, iscrowd, mask) of an image's annotations in a COCO dict."""
    return [
        (a["category_id"], a["iscrowd"], coco_mask.decode(a["segmentation"]).astype(bool))
        for a in truth["annotations"]
        if a["image_id"] == image_id
    ]


def problems_of(root: Path, format: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_sets(root, format, **options)
    assert all(problem.found and problem.expected and problem.cure for problem in caught.value.problems)
    return str(caught.value)


def test_cityscapes_instances_are_those_of_the_instance_ids(tmp_path: Path) -> None:
    scenes = write_cityscapes(tmp_path)["train"]
    source = Cityscapes(tmp_path, "train")
    assert len(source) == 12 and source.image_field("city") == ["aachen"] * 6 + ["bochum"] * 6
    assert source.class_names == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert source.category_ids == [24, 25, 26, 27, 28, 31, 32, 33]
    truth = source.ground_truth()
    for index, scene in enumerate(scenes):
        assert source.records[index].path == scene.image
        sample = source[index]
        assert sample.image.shape == (3, 64, 128) and sample.instances is not None
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), np.asarray(Image.open(scene.image)))
        values = [26, 24000, 25000, 26000, 26001, 33000]
        assert [source.category_ids[label] for label in sample.instances.labels] == [26, 24, 25, 26, 26, 33]
        assert sample.instances.crowd.tolist() == [True, False, False, False, False, False]
        for value, mask, (category, crowd, encoded) in zip(
            values, sample.instances.masks, masks_of(truth, source.image_ids[index]), strict=True
        ):
            np.testing.assert_array_equal(mask.numpy(), scene.codes == value)
            np.testing.assert_array_equal(encoded, scene.codes == value)
            assert (category, crowd) == ((value, 1) if value < 1000 else (value // 1000, 0))
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 73))
    first = truth["annotations"][1]
    assert first["area"] == (scenes[0].codes == 24000).sum() and first["bbox"][3] == 32.0
    assert truth["images"][0]["city"] == "aachen" and truth["images"][0]["file_name"].startswith("aachen/aachen_000000")


def test_groups_of_cityscapes_are_neither_object_nor_background_in_views(tmp_path: Path) -> None:
    scene = write_cityscapes(tmp_path)["train"][0]
    views = Views((64, 128), scale=(1.0, 1.0), hflip=False, vflip=False, rot90=False, min_pixels=1)
    _, _, valid, instances = draw_views(Cityscapes(tmp_path, "train"), 0, views, 0)
    assert len(instances) == 5 and not instances.crowd.any()
    np.testing.assert_array_equal(valid.numpy(), scene.codes != 26)


def test_ade20k_reads_class_from_red_and_instance_from_green(tmp_path: Path) -> None:
    scenes = write_ade20k(tmp_path)
    source = Ade20k(tmp_path, "train")
    assert len(source) == 12 and len(set(ADE_CLASSES)) == 100
    assert source.class_names == list(ADE_CLASSES) and source.category_ids == list(range(1, 101))
    truth = source.ground_truth()
    for index, scene in enumerate(scenes[:12]):
        sample = source[index]
        assert sample.instances is not None and sample.image.shape[1:] == scene.codes.shape == source.size(index)
        values = [int(v) for v in np.unique(scene.codes) if v]
        assert [source.category_ids[label] for label in sample.instances.labels] == [v >> 8 for v in values]
        for value, mask, (category, crowd, encoded) in zip(
            values, sample.instances.masks, masks_of(truth, source.image_ids[index]), strict=True
        ):
            np.testing.assert_array_equal(mask.numpy(), scene.codes == value)
            np.testing.assert_array_equal(encoded, scene.codes == value)
            assert (category, crowd) == (value >> 8, 0)
    assert len(Ade20k(tmp_path, "val")) == 3


LISTS = {
    "imgCatIds.json": json.dumps({"categories": [{"id": 2, "name": "sofa"}, {"id": 1, "name": "bed"}], "images": []}),
    "instanceInfo100_train.txt": "Idx\tObject Names\t\t#Inst.\n1\tbed           \t2189\t49.06\n2\tsofa  \t1\t2\n",
}


@pytest.mark.parametrize(("name", "text"), LISTS.items())
def test_ade20k_takes_its_classes_from_the_benchmarks_list(tmp_path: Path, name: str, text: str) -> None:
    write_ade20k(tmp_path, classes=(1, 2))
    (tmp_path / name).write_text(text)
    assert Ade20k(tmp_path, "train").class_names == ["bed", "sofa"]
    (tmp_path / name).write_text(text.replace("2", "7"))
    assert f"{name}: 2 numbered classes; expected classes 1, 2, ... with names" in problems_of(tmp_path, "ade20k")


def test_coco_opens_from_its_root(tmp_path: Path) -> None:
    write_coco(tmp_path)
    sets = open_sets(tmp_path, "coco")
    assert (len(sets.train), len(sets.val)) == (12, 3) and sets.train.class_names == ["person", "stop sign"]
    assert ["with gaps" in warning for warning in sets.warnings] == [True, True]
    files = coco_files(tmp_path)
    assert open_sets(files, "coco").train.image_ids == sets.train.image_ids
    assert [record.named_by[0] for record in sets.train.records] == sets.train.image_ids


@pytest.mark.parametrize(("format", "write"), [("cityscapes", write_cityscapes), ("ade20k", write_ade20k)])
def test_sound_folders_pass_and_classes_without_instances_are_named(tmp_path: Path, format: str, write: Any) -> None:
    write(tmp_path)
    sets = open_sets(tmp_path, format)
    warnings = sets.warnings
    assert {record.named_by[0] for part in (sets.train, sets.val) for record in part.records} == {None}
    unseen = {"cityscapes": "4 classes have no instance: truck, bus, train, motorcycle.", "ade20k": "96 classes have"}
    assert len(warnings) == 2 and all(unseen[format] in warning for warning in warnings)


@pytest.mark.parametrize("format", ["cityscapes", "ade20k"])
def test_another_folder_is_refused_with_what_belongs_there(tmp_path: Path, format: str) -> None:
    text = problems_of(tmp_path, format)
    assert "the folder does not exist" in text and "Let data.root be the folder that holds" in text


def break_cityscapes(scenes: dict[str, list[Scene]]) -> None:
    train = scenes["train"]
    train[0].labels.unlink()
    Image.fromarray((train[1].codes % 251).astype(np.uint8)).save(train[1].labels)
    Image.fromarray(np.full((64, 128), 255, dtype=np.uint16)).save(train[2].labels)
    Image.new("RGB", (64, 64)).save(train[3].image)
    train[4].image.write_bytes(train[4].image.read_bytes()[:900])
    scenes["val"][0].image.write_bytes(train[5].image.read_bytes())
    train[6].image.unlink()


def test_every_problem_of_cityscapes_is_named_at_once(tmp_path: Path) -> None:
    break_cityscapes(write_cityscapes(tmp_path))
    text = problems_of(tmp_path, "cityscapes")
    assert text.startswith("6 problems found in the data:")
    for line in (
        "aachen_000000_000019_gtFine_instanceIds.png: image 1 (aachen/aachen_000000_000019_leftImg8bit.png): the "
        "annotation picture does not exist",
        "aachen_000001_000019_gtFine_instanceIds.png: image 2 (aachen/aachen_000001_000019_leftImg8bit.png): a picture "
        "of 1 channels of uint8; expected one channel of 16 bits. Use the *_gtFine_instanceIds.png files",
        "aachen_000002_000019_gtFine_instanceIds.png: image 3 (aachen/aachen_000002_000019_leftImg8bit.png): the value "
        "255; expected label ids up to 33",
        "aachen_000003_000019_leftImg8bit.png: image 4: the image is 64 x 64 pixels (height x width); expected",
        "aachen_000004_000019_leftImg8bit.png: image 5: the image file cannot be read",
        "image 1: frankfurt/frankfurt_000000_000019_leftImg8bit.png has the same content as the training image",
    ):
        assert line in text


def test_annotations_without_an_image_are_a_warning(tmp_path: Path) -> None:
    scenes = write_cityscapes(tmp_path)
    scenes["train"][0].image.unlink()
    warnings = open_sets(tmp_path, "cityscapes").warnings
    assert any(
        "1 annotation pictures have no image: aachen_000000_000019_gtFine_instanceIds.png" in w for w in warnings
    )


def test_cities_on_both_sides_are_a_problem_where_they_are_the_groups(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"train": {"aachen": 2, "bochum": 2}, "val": {"bochum": 1, "ulm": 1}})
    assert "city bochum: images 1 belong to it, and training images 3, 4 too" in problems_of(
        tmp_path, "cityscapes", group_key="city"
    )
    open_sets(tmp_path, "cityscapes")


def test_annotations_of_a_test_split_are_no_ground_truth(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, objects=())
    assert "no instance in any annotation picture; expected at least one" in problems_of(tmp_path, "cityscapes")


@pytest.mark.parametrize(
    ("pixel", "message"),
    [
        ((0, 9, 0), "an instance of class 0; expected classes 1 to 100"),
        ((101, 9, 0), "an instance of class 101; expected classes 1 to 100"),
    ],
)
def test_faulty_ade20k_pictures_are_named(tmp_path: Path, pixel: tuple[int, ...], message: str) -> None:
    scene = write_ade20k(tmp_path, classes=(1,))[2]
    picture = np.array(Image.open(scene.labels))
    picture[0, 0] = pixel
    Image.fromarray(picture).save(scene.labels)
    text = problems_of(tmp_path, "ade20k")
    assert "ADE_train_00000003.png: image 3 (ADE_train_00000003.jpg)" in text and message in text


def test_an_ade20k_instance_of_several_classes_has_that_of_its_first_pixel(tmp_path: Path) -> None:
    scene = write_ade20k(tmp_path, classes=(4, 9))[0]
    picture = np.array(Image.open(scene.labels))
    of_first = np.argwhere(picture[..., 1] == 1)
    picture[(*of_first[-1], 0)] = 7
    picture[(*of_first[0], 0)] = 12
    Image.fromarray(picture).save(scene.labels)
    instances = open_sets(tmp_path, "ade20k").train[0].instances
    assert instances is not None
    assert sorted(instances.labels.tolist()) == [8, 11]
    (mask,) = instances.masks[instances.labels == 11].numpy()
    np.testing.assert_array_equal(mask, picture[..., 1] == 1)


def test_ade20k_of_another_benchmark_is_recognised(tmp_path: Path) -> None:
    for scene in write_ade20k(tmp_path):
        Image.fromarray((scene.codes >> 8).astype(np.uint8)).save(scene.labels)
    assert "Use the pictures of annotations_instance, not those of annotations." in problems_of(tmp_path, "ade20k")


@pytest.mark.parametrize("kind", ["grey", "16-bit", "RGBA", "EXIF-rotated"])
def test_images_of_other_kinds_are_read_beside_their_annotations(tmp_path: Path, kind: str) -> None:
    scene = write_cityscapes(tmp_path)["train"][0]
    picture = Image.open(scene.image)
    exif = Image.Exif()
    if kind == "grey":
        picture = picture.convert("L")
    elif kind == "16-bit":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256)
    elif kind == "RGBA":
        picture = picture.convert("RGBA")
    else:
        exif[0x0112] = 6
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    picture.save(scene.image, exif=exif)
    source = open_sets(tmp_path, "cityscapes").train
    assert source[0].image.shape == (3, 64, 128)
    if kind in ("RGBA", "EXIF-rotated"):
        upright = np.asarray(Image.open(scene.image).convert("RGB"))
        upright = np.rot90(upright, -1) if kind == "EXIF-rotated" else upright
        np.testing.assert_array_equal(source[0].image.permute(1, 2, 0).numpy(), upright)
