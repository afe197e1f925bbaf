"""The checks of a data set: all problems are reported at once with place and cure; sound data pass."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from sskd_fast.data.copies import pixel_hash
from sskd_fast.data.doctor import check_dataset
from sskd_fast.data.errors import LISTED_PROBLEMS, DataError, Problem


@pytest.fixture
def sound(make_coco, box_mask):
    """A training set without a fault: three images with one instance of each of two classes."""
    coco = make_coco("train", {1: "a", 2: "b"})
    for _ in range(3):
        image = coco.image((12, 16))
        coco.instance(image, box_mask(12, 16, 0, 0, 5, 5))
        coco.instance(image, [[6, 6, 10, 6, 10, 10]], category_id=2)
    return coco


@pytest.fixture
def validation(make_coco, box_mask):
    """A validation set without a fault that goes with `sound`."""
    coco = make_coco("val", {1: "a", 2: "b"})
    for image_id in (101, 102):
        coco.image((12, 16), image_id=image_id)
        coco.instance(image_id, box_mask(12, 16, 0, 0, 5, 5))
        coco.instance(image_id, box_mask(12, 16, 5, 5, 9, 9), category_id=2)
    return coco


def problems_of(coco, **options):
    with pytest.raises(DataError) as caught:
        check_dataset(coco.write(), coco.images, **options)
    return caught.value


def test_sound_data_pass_without_a_warning(sound, validation):
    for decode in (True, False):
        options = {"val": validation.write(), "val_images": validation.images, "unlabeled": sound.images}
        assert check_dataset(sound.write(), sound.images, decode=decode, **options) == []


def test_all_problems_come_in_one_error_with_place_and_cure(sound):
    (sound.images / "1.png").unlink()
    (sound.images / "2.png").write_bytes(b"no image")
    sound.content["annotations"][4]["segmentation"] = {"size": [16, 12], "counts": [192]}
    sound.content["annotations"][5]["segmentation"] = [[1, 1, 2, 2]]
    sound.content["annotations"][0]["category_id"] = 7
    sound.content["annotations"][1]["image_id"] = 99
    error = problems_of(sound)
    text = str(error)
    assert len(error.problems) == 6 and text.startswith("6 problems found in the data:")
    for line in (
        "1.png: image 1: the image file does not exist; expected a readable image. Correct `file_name` or the folder",
        "2.png: image 2: the image file cannot be read",
        "instances.json: annotation 5 of image 3: RLE of size [16, 12]; expected [12, 16]",
        "instances.json: annotation 6 of image 3: a polygon of 2 points; expected a flat list",
        "instances.json: annotation 1 of image 1: it names category 7, which the file does not list; expected one of 1",
        "instances.json: annotation 2 of image 99: it names image 99, which the file does not list",
    ):
        assert line in text
    assert all(problem.cure and problem.expected for problem in error.problems)


def test_missing_validation_images_may_have_a_folder_of_their_own(sound, validation):
    arguments = {"val": validation.write(), "val_images": None}
    for given in (None, sound.images):
        arguments["val_images"] = given
        with pytest.raises(DataError, match=r"the image file does not exist.*--val-images DIR"):
            check_dataset(sound.write(), sound.images, **arguments)
    (validation.images / validation.content["images"][0]["file_name"]).unlink()
    with pytest.raises(DataError) as caught:
        check_dataset(sound.write(), sound.images, **arguments | {"val_images": validation.images})
    assert "--val-images" not in str(caught.value)


def test_other_faults_of_validation_labels_are_not_blamed_on_the_folder(sound, validation):
    for path in validation.images.iterdir():
        shutil.copy(path, sound.images)
    (sound.images / "102.png").unlink()
    validation.content["annotations"][0]["category_id"] = 7
    with pytest.raises(DataError) as caught:
        check_dataset(sound.write(), sound.images, val=validation.write())
    missing, unknown = caught.value.problems
    assert missing.item == "image 102" and missing.cure.startswith(
        "If the validation images have a folder of their own"
    )
    assert unknown.found.startswith("it names category 7") and unknown.cure == (
        "Correct its category_id or add the category."
    )


def test_repeated_image_ids_name_both_files(sound):
    sound.content["images"][1]["id"] = 1
    text = str(problems_of(sound))
    assert "instances.json: image 1: its id is used by 1.png and 2.png; expected an id of its own" in text


def test_repeated_category_ids_and_names_are_problems(sound):
    sound.content["categories"].append({"id": 2, "name": "c"})
    sound.content["categories"].append({"id": 3, "name": "a"})
    text = str(problems_of(sound))
    assert "category 2: its id is used by 'b' and 'c'" in text
    assert "category 'a': 2 categories have this name" in text


def test_damaged_image_is_found_by_decoding_alone(sound):
    whole = (sound.images / "2.png").read_bytes()
    (sound.images / "2.png").write_bytes(whole[: len(whole) // 2])
    assert "2.png: image 2: the image file cannot be read" in str(problems_of(sound))
    assert check_dataset(sound.write(), sound.images, decode=False) == []


@pytest.mark.parametrize("decode", [True, False])
def test_image_of_another_size_states_both(sound, decode):
    sound.content["images"][0].update(height=16, width=12)
    text = str(problems_of(sound, decode=decode))
    assert "1.png: image 1: the image is 12 x 16 pixels (height x width); expected 16 x 12, as" in text


@pytest.mark.parametrize("segmentation", [None, []])
def test_boxes_without_masks_are_a_problem(sound, segmentation):
    for annotation in sound.content["annotations"]:
        annotation.update(segmentation=segmentation, bbox=[0, 0, 3, 3])
    error = problems_of(sound)
    assert len(error.problems) == 6
    assert "a box without a mask" in str(error) and "boxes alone cannot train instance segmentation" in str(error)


def test_no_instance_at_all_is_a_problem(sound):
    sound.content["annotations"] = []
    assert "instances.json: annotations: no instance with a mask; expected at least one" in str(problems_of(sound))


def test_crowds_alone_are_no_instances(sound):
    for annotation in sound.content["annotations"]:
        annotation["iscrowd"] = 1
    assert "no instance with a mask" in str(problems_of(sound))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "instances.json: the file is no valid JSON"),
        ("[]", "instances.json: a JSON list; expected a JSON object"),
        ('{"images": []}', r"instances.json: a JSON object with \['images'\]"),
        ('{"images": [], "annotations": [], "categories": []}', "2 problems(.|\n)*no category(.|\n)*images: no image"),
        ('{"images": [3], "annotations": [4], "categories": [{"id": "1"}]}', r"images\[0\]: the record 3"),
    ],
)
def test_malformed_files_are_problems(sound, text, message):
    sound.file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        check_dataset(sound.file, sound.images)


def test_missing_annotation_files_of_both_sets_are_named_together(tmp_path):
    with pytest.raises(DataError) as caught:
        check_dataset(tmp_path / "train.json", tmp_path, val=tmp_path / "val.json", unlabeled=tmp_path / "plain")
    files = [str(problem.file).rsplit("/", 1)[-1] for problem in caught.value.problems]
    assert files == ["train.json", "val.json", "plain"]


def test_warnings_name_gaps_empty_classes_empty_masks_and_repeated_ids(sound, box_mask):
    sound.content["categories"] += [{"id": 9, "name": "c"}]
    sound.instance(1, np.zeros((12, 16), dtype=bool))
    sound.instance(2, box_mask(12, 16, 0, 0, 2, 2))
    sound.content["annotations"][-1]["id"] = 3
    sound.content["images"].append({**sound.content["images"][0], "id": 4})
    warnings = check_dataset(sound.write(), sound.images)
    for text in (
        "the 3 category ids run from 1 to 9 with gaps; they are mapped to classes 0 to 2",
        "1 classes have no instance: c.",
        "1 masks have no pixel and are dropped (annotations 7)",
        "1 annotation ids are missing or used more than once (3)",
        "images 1 and 4 are the same file, 1.png",
    ):
        assert sum(text in warning for warning in warnings) == 1
    assert len(warnings) == 5 and all(str(sound.file) in warning for warning in warnings)


def test_long_ids_are_told_apart_and_cut_in_messages(sound):
    for annotation in sound.content["annotations"]:
        annotation["id"] = f"{'scan of the left side ' * 4}{annotation['id']}"
    assert check_dataset(sound.write(), sound.images) == []
    first = sound.content["annotations"][0]
    sound.content["annotations"][1]["id"] = first["id"]
    (warning,) = check_dataset(sound.write(), sound.images)
    shown = "scan of the left side scan of the left s"
    assert f"1 annotation ids are missing or used more than once ({shown}); they are renumbered" in warning
    sound.instance(1, np.zeros((12, 16), dtype=bool), id=f"{first['id']}7")
    assert f"(annotations {shown})" in check_dataset(sound.write(), sound.images)[0]
    sound.content["annotations"][2]["segmentation"] = [[1, 1, 2, 2]]
    assert f"{sound.file}: annotation {shown} of image 2: a polygon of 2 points" in str(problems_of(sound))


def test_validation_may_use_the_ids_and_names_of_training_images_for_other_images(sound, validation):
    validation.content["images"][0]["id"] = validation.content["annotations"][0]["image_id"] = 1
    validation.content["annotations"][1]["image_id"] = 1
    validation.content["images"][0]["file_name"] = "1.png"
    Image.new("RGB", (16, 12)).save(validation.images / "1.png")
    assert check_dataset(sound.write(), sound.images, val=validation.write(), val_images=validation.images) == []


def test_validation_image_with_the_content_of_a_training_image(sound, validation):
    shutil.copy(sound.images / "3.png", validation.images / "101.png")
    error = problems_of(sound, val=validation.write(), val_images=validation.images)
    assert len(error.problems) == 1
    assert "image 101: 101.png has the same content as the training image" in str(error)
    assert "Take it out of one of them" in str(error)


def resaved(source, target, **options):
    """Saves the same pixels in other bytes."""
    with Image.open(source) as image:
        image.save(target, **(options or {"compress_level": 1}))
    assert source.read_bytes() != target.read_bytes()


def test_validation_image_with_the_pixels_of_a_training_image_in_other_bytes(sound, validation):
    resaved(sound.images / "3.png", validation.images / "101.png")
    options = {"val": validation.write(), "val_images": validation.images}
    (problem,) = problems_of(sound, **options).problems
    assert (problem.file, problem.item) == (validation.file, "image 101")
    assert problem.found == f"101.png shows the pixels of the training image {sound.images / '3.png'}, in other bytes"
    assert check_dataset(sound.write(), sound.images, decode=False, **options) == []


def test_images_of_one_set_with_the_same_pixels_in_other_bytes(sound, monkeypatch, tmp_path):
    monkeypatch.setenv("SSKD_FAST_CACHE", str(tmp_path / "cache"))
    resaved(sound.images / "1.png", sound.images / "3.png")
    for _ in range(2):  # the second time as remembered
        assert check_dataset(sound.write(), sound.images) == [
            f"{sound.file}: 1 of 3 images show the pixels of another one in a file of other bytes (3.png those of "
            "1.png): they count twice, and splits may put them on both sides. Remove the copies."
        ]


def test_unlabelled_images_with_the_pixels_of_validation_images_in_other_bytes(sound, validation, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    resaved(validation.images / "102.png", plain / "b.tif", format="TIFF")
    shutil.copy(validation.images / "101.png", plain / "a.png")  # left out by its bytes
    options = {"val": validation.write(), "val_images": validation.images, "unlabeled": plain}
    assert check_dataset(sound.write(), sound.images, **options) == [
        f"{plain}: 1 of 2 images show the pixels of labelled or validation images in files of other bytes (b.tif those "
        f"of {validation.images / '102.png'}): take them out of the unlabelled set."
    ]


def test_grey_pixels_in_one_channel_are_those_in_three():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert pixel_hash(grey) == pixel_hash(np.stack([grey] * 3, axis=-1))
    assert len({pixel_hash(grey), pixel_hash(grey.reshape(4, 3)), pixel_hash(grey + 1)}) == 3


def test_group_on_both_sides_is_a_problem(sound, validation):
    for number, image in enumerate(sound.content["images"] + validation.content["images"]):
        image["group"] = number % 3
    options = {"val": validation.write(), "val_images": validation.images}
    error = problems_of(sound, **options, group_key="group")
    assert [problem.item for problem in error.problems] == ["group 0", "group 1"]
    assert check_dataset(sound.write(), sound.images, **options) == []


def test_validation_must_list_the_training_classes_and_may_list_others(sound, validation):
    validation.content["categories"][0]["name"] = "dog"
    error = problems_of(sound, val=validation.write(), val_images=validation.images)
    assert "val/instances.json: categories: no category named a; expected all of a, b" in str(error)
    validation.content["categories"][0]["name"] = "a"
    validation.content["categories"].append({"id": 3, "name": "dog"})
    warnings = check_dataset(sound.write(), sound.images, val=validation.write(), val_images=validation.images)
    assert any("1 classes are not in" in warning and "left out: dog" in warning for warning in warnings)


def test_wanted_classes_must_exist(sound):
    assert "no category named c; expected all of a, c" in str(problems_of(sound, class_names=["a", "c"]))


def test_unlabelled_images_are_opened(sound, validation, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "bad.png").write_bytes(b"no image")
    options = {"val": validation.write(), "val_images": validation.images, "unlabeled": plain}
    assert "bad.png: image 1: the image file cannot be read" in str(problems_of(sound, **options))
    Image.new("RGB", (9, 9), (1, 2, 3)).save(plain / "bad.png")
    assert check_dataset(sound.write(), sound.images, **options) == []


def test_a_long_list_of_problems_is_cut_in_the_message_alone():
    kinds = [chr(0x4E00 + n) for n in range(LISTED_PROBLEMS + 5)]
    problems = [Problem("a.json", f"annotation {n}", kind, "y", "z.") for n, kind in enumerate(kinds)]
    error = DataError(problems)
    assert len(error.problems) == LISTED_PROBLEMS + 5
    assert str(error).endswith("... and 5 more kinds, in the error's `problems`")
    assert str(DataError(problems[:1])) == f"a.json: annotation 0: {kinds[0]}; expected y. z."


def test_real_nuclei_are_sound(real_data):
    folder = real_data("nuclei_dsb2018")
    annotations = folder / "annotations"
    warnings = check_dataset(
        annotations / "instances_train.json",
        folder / "images",
        val=annotations / "instances_val.json",
        group_key="group",
        decode=False,
    )
    assert warnings == []


def test_real_photographs_are_sound_with_gaps_and_unseen_classes(real_data):
    folder = real_data("coco_mini")
    annotations = folder / "annotations"
    train, val = annotations / "instances_train.json", annotations / "instances_val.json"
    warnings = check_dataset(train, folder / "images", val=val)
    assert [warning.split(": ")[1] for warning in warnings] == [
        "the 80 category ids run from 1 to 90 with gaps; they are mapped to classes 0 to 79 and back in results.",
        "the 80 category ids run from 1 to 90 with gaps; they are mapped to classes 0 to 79 and back in results.",
        "44 classes have no instance",
        "35 classes have no instance",
    ]


def test_real_training_images_in_validation_are_all_found(real_data):
    folder = real_data("coco_mini")
    train = folder / "annotations" / "instances_train.json"
    with pytest.raises(DataError) as caught:
        check_dataset(train, folder / "images", val=train)
    assert len(caught.value.problems) == 26
