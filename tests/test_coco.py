"""COCO reading: every mask form, windows, subsets, ground truth, pseudo-labels and plain folders."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.errors import DataError
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.pseudo_labeled import PseudoLabeled, unlabeled
from sskd_fast.rle import MaskError, encode_segmentation


def uncompressed(mask):
    """COCO's run lengths: down the columns, starting with zeros."""
    flat = mask.flatten(order="F").astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs if flat[0] == 0 else [0, *runs]}


def test_polygon_and_both_run_length_forms_give_the_same_mask(make_coco, box_mask):
    coco = make_coco()
    image = coco.image((20, 30))
    mask = box_mask(20, 30, 3, 5, 11, 17)
    coco.instance(image, mask)
    coco.instance(image, uncompressed(mask))
    coco.instance(image, [[5, 3, 17, 3, 17, 11, 5, 11]])
    masks = CocoInstances(coco.write(), coco.images)[0].instances.masks
    assert masks.shape == (3, 20, 30) and masks.dtype == torch.bool
    for decoded in masks:
        assert torch.equal(decoded, torch.from_numpy(mask))


def test_polygon_of_several_parts_is_their_union(make_coco, box_mask):
    coco = make_coco()
    image = coco.image((20, 30))
    coco.instance(image, [[1, 1, 6, 1, 6, 6, 1, 6], [20, 10, 25, 10, 25, 15, 20, 15]])
    mask = CocoInstances(coco.write(), coco.images)[0].instances.masks[0].numpy()
    assert np.array_equal(mask, box_mask(20, 30, 1, 1, 6, 6) | box_mask(20, 30, 10, 20, 15, 25))


def test_nested_overlapping_and_identical_masks_stay_whole_and_in_order(make_coco):
    rng = np.random.default_rng(0)
    coco = make_coco(classes={1: "a", 2: "b"})
    image = coco.image((32, 40))
    masks = [rng.random((32, 40)) < share for share in (0.9, 0.5, 0.1, 0.02)]
    masks += [masks[1], masks[0] & masks[1]]
    for number, mask in enumerate(masks):
        coco.instance(image, mask, category_id=1 + number % 2, iscrowd=int(number == 3))
    instances = CocoInstances(coco.write(), coco.images)[0].instances
    assert torch.equal(instances.masks, torch.from_numpy(np.stack(masks)))
    assert instances.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert instances.crowd.tolist() == [False, False, False, True, False, False]
    assert instances.scores.tolist() == [1.0] * 6


def test_masks_without_a_pixel_are_dropped(make_coco, box_mask):
    coco = make_coco(classes={1: "a", 2: "b"})
    image = coco.image((20, 30))
    coco.instance(image, np.zeros((20, 30), dtype=bool))
    coco.instance(image, box_mask(20, 30, 0, 0, 1, 1), category_id=2)
    instances = CocoInstances(coco.write(), coco.images)[0].instances
    assert instances.labels.tolist() == [1] and int(instances.masks.sum()) == 1


def test_window_equals_the_crop_of_the_whole(make_coco):
    rng = np.random.default_rng(1)
    coco = make_coco()
    image = coco.image((40, 50))
    for _ in range(12):
        top, left = rng.integers(0, 34), rng.integers(0, 44)
        mask = np.zeros((40, 50), dtype=bool)
        mask[top : top + 6, left : left + 6] = rng.random((6, 6)) < 0.7
        coco.instance(image, mask)
    source = CocoInstances(coco.write(), coco.images)
    whole, window = source[0], source.window(0, 7, 9, 20, 25)
    crop = whole.instances.masks[:, 7:27, 9:34]
    kept = crop.flatten(1).any(1)
    assert torch.equal(window.image, whole.image[:, 7:27, 9:34])
    assert torch.equal(window.instances.masks, crop[kept]) and 0 < int(kept.sum()) < 12


def test_resized_window_keeps_image_and_masks_aligned(make_coco, box_mask):
    coco = make_coco()
    mask = box_mask(40, 40, 10, 20, 30, 36)
    image = coco.image(np.where(mask, 255, 0).astype(np.uint8))
    coco.instance(image, mask)
    source = CocoInstances(coco.write(), coco.images)
    for size in ((40, 40), (20, 20), (80, 60)):
        sample = source.window(0, 0, 0, 40, 40, size=size)
        assert sample.image.shape == (3, *size)
        disagreement = (sample.image[0] >= 128) != sample.instances.masks[0]
        assert float(disagreement.float().mean()) == 0.0


def test_window_outside_the_image_names_image_and_size(make_coco):
    coco = make_coco()
    coco.image((20, 30))
    source = CocoInstances(coco.write(), coco.images)
    with pytest.raises(ValueError, match=r"image 1 \(1.png\): window of 10 x 10 at \(15, 0\).*20 x 30"):
        source.window(0, 15, 0, 10, 10)


def test_category_ids_with_gaps_are_mapped_in_order(make_coco, box_mask):
    coco = make_coco(classes={90: "z", 7: "b", 3: "a"})
    image = coco.image((8, 8))
    coco.instance(image, box_mask(8, 8, 0, 0, 4, 4), category_id=90)
    coco.instance(image, box_mask(8, 8, 4, 4, 8, 8), category_id=7)
    source = CocoInstances(coco.write(), coco.images)
    assert source.class_names == ["a", "b", "z"] and source.category_ids == [3, 7, 90]
    assert source[0].instances.labels.tolist() == [2, 1]


def test_class_names_set_the_order_and_leave_out_the_rest(make_coco, box_mask):
    coco = make_coco(classes={1: "a", 2: "b", 3: "c"})
    image = coco.image((8, 8))
    for category_id in (1, 2, 3):
        coco.instance(image, box_mask(8, 8, 0, 0, 4, 4), category_id=category_id)
    source = CocoInstances(coco.write(), coco.images, class_names=["c", "a"])
    assert source.category_ids == [3, 1] and source[0].instances.labels.tolist() == [1, 0]
    assert [entry["category_id"] for entry in source.ground_truth()["annotations"]] == [1, 3]
    with pytest.raises(DataError, match=r"instances.json: categories: no category named \['dog'\]"):
        CocoInstances(coco.file, coco.images, class_names=["a", "dog"])


def test_ground_truth_has_original_ids_and_decodes_to_the_same_masks(make_coco, box_mask):
    coco = make_coco(classes={5: "a"})
    for image_id in (11, 42):
        coco.image((20, 30), image_id=image_id)
        coco.instance(image_id, [[5, 3, 17, 3, 17, 11, 5, 11]], category_id=5)
        coco.instance(image_id, box_mask(20, 30, 0, 0, 2, 3), category_id=5, iscrowd=1)
    source = CocoInstances(coco.write(), coco.images).subset([42])
    truth = json.loads(json.dumps(source.ground_truth()))
    assert [image["id"] for image in truth["images"]] == [42]
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2]
    assert [entry["area"] for entry in truth["annotations"]] == [96.0, 6.0]
    assert truth["annotations"][0]["bbox"] == [5.0, 3.0, 12.0, 8.0]
    assert [entry["iscrowd"] for entry in truth["annotations"]] == [0, 1]
    assert truth["categories"] == [{"id": 5, "name": "a"}]
    for entry, mask in zip(truth["annotations"], source[0].instances.masks, strict=True):
        assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), mask.numpy())


def test_image_fields_travel_as_text_and_missing_ones_are_named(make_coco):
    coco = make_coco()
    coco.image((4, 4), group=3, modality="fluorescence", source_size=[4, 4])
    coco.image((4, 4), group=5)
    source = CocoInstances(coco.write(), coco.images, name="train")
    assert source[0].extra == {"group": "3", "modality": "fluorescence"}
    assert source.image_field("group") == ["3", "5"]
    with pytest.raises(ValueError, match=r"image 2 \(2.png\): has no field 'modality'; expected .* \(group\)"):
        source.image_field("modality")


def test_subset_keeps_its_order_and_names_unknown_ids(make_coco):
    coco = make_coco()
    for _ in range(4):
        coco.image((4, 4))
    source = CocoInstances(coco.write(), coco.images, name="train")
    assert source.subset([3, 1]).image_ids == [3, 1] and source.subset([3, 1])[0].image_id == 3
    assert len(source) == 4
    with pytest.raises(ValueError, match=r"train: 1 image ids that are not in the set: \[9\]"):
        source.subset([1, 9])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "no segmentation .a box without a mask."),
        ([], "empty list .a box without a mask."),
        ([[1, 1, 5, 5]], "a polygon of 2 points; expected .* at least 3 points"),
        ([[1, 1, 5, 5, float("nan"), 3]], "a value that is not a number"),
        ({"size": [9, 8], "counts": [72]}, r"RLE of size \[9, 8\]; expected \[8, 9\]"),
        ({"size": [8, 9], "counts": [70]}, "RLE counts that cover 70 pixels; expected 8 x 9 = 72"),
        ({"size": [8, 9], "counts": "P3"}, "RLE counts that cover"),
        ({"size": [8, 9], "counts": "  "}, "not valid run lengths"),
        ({"size": 8, "counts": "P3"}, "RLE of size 8"),
        ("mask.png", "a segmentation of type str"),
    ],
)
def test_faulty_segmentations_say_what_was_found_and_expected(segmentation, message):
    with pytest.raises(MaskError, match=message):
        encode_segmentation(segmentation, 8, 9)


def test_any_encoded_mask_passes_the_check_of_its_run_lengths(encode):
    rng = np.random.default_rng(2)
    for height, width in ((1, 1), (1, 300), (300, 1), (37, 53), (200, 90)):
        for share in (0.0, 0.01, 0.5, 1.0):
            mask = rng.random((height, width)) < share
            decoded = coco_mask.decode(encode_segmentation(encode(mask), height, width))
            assert np.array_equal(decoded.astype(bool), mask)


def test_faulty_mask_names_file_annotation_and_image(make_coco):
    coco = make_coco()
    coco.image((8, 9))
    coco.instance(1, [[1, 1, 5, 5]])
    source = CocoInstances(coco.write(), coco.images)
    with pytest.raises(DataError, match=r"instances.json: annotation 1 of image 1: a polygon of 2 points"):
        source[0]


def test_malformed_files_are_refused_with_their_name(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken.json: the file is no valid JSON"):
        CocoInstances(path, tmp_path)
    path.write_text('{"images": []}', encoding="utf-8")
    with pytest.raises(DataError, match=r"broken.json: a JSON object with \['images'\]"):
        CocoInstances(path, tmp_path)
    with pytest.raises(DataError, match=r"absent.json: the annotation file does not exist"):
        CocoInstances(tmp_path / "absent.json", tmp_path)


def test_annotations_of_unknown_images_and_categories_are_all_named(make_coco, box_mask):
    coco = make_coco()
    coco.image((8, 8))
    coco.instance(5, box_mask(8, 8, 0, 0, 2, 2))
    coco.instance(1, box_mask(8, 8, 0, 0, 2, 2), category_id=9)
    with pytest.raises(DataError) as caught:
        CocoInstances(coco.write(), coco.images)
    assert "annotation 1 of image 5: it names image 5" in str(caught.value)
    assert "annotation 2 of image 1: it names category 9" in str(caught.value)


def test_folder_is_read_recursively_in_order_without_labels(tmp_path):
    for name in ("b.png", "a/c.jpg", ".hidden/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name != "notes.txt":
            Image.new("RGB", (5, 3)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    source = ImageFolder(tmp_path)
    assert source.file_names == ["a/c.jpg", "b.png"] and source.image_ids == [1, 2]
    assert source.size(0) == (3, 5) and source[1].instances is None
    with pytest.raises(DataError, match="notes: the folder does not exist"):
        ImageFolder(tmp_path / "notes")


def test_pseudo_labels_replace_the_labels_of_the_base(make_coco, box_mask, encode):
    coco = make_coco(classes={3: "a", 8: "b"})
    for _ in range(2):
        coco.image((10, 12))
        coco.instance(len(coco.content["images"]), box_mask(10, 12, 0, 0, 9, 9), category_id=3)
    base = CocoInstances(coco.write(), coco.images)
    mask = box_mask(10, 12, 2, 2, 5, 7)
    results = [{"image_id": 2, "category_id": 8, "segmentation": encode(mask), "score": 0.75}]
    source = PseudoLabeled(base, results, [3, 8])
    assert len(source[0].instances) == 0
    sample = source[1]
    assert torch.equal(sample.instances.masks[0], torch.from_numpy(mask))
    assert sample.instances.labels.tolist() == [1] and sample.instances.scores.tolist() == [0.75]
    assert source.subset([2])[0].instances.scores.tolist() == [0.75]
    assert len(base[1].instances) == 1 and int(base[1].instances.masks.sum()) == 81


def test_unsure_pseudo_labels_are_regions_that_do_not_count(make_coco, box_mask, encode):
    coco = make_coco()
    coco.image((10, 12))
    result = {"image_id": 1, "category_id": 1, "segmentation": encode(box_mask(10, 12, 2, 2, 5, 7)), "score": 0.3}
    source = PseudoLabeled(CocoInstances(coco.write(), coco.images), [result, {**result, "iscrowd": 1}], [1])
    assert source[0].instances.crowd.tolist() == [False, True]


def test_unknown_category_and_wrong_size_of_pseudo_labels_are_named(make_coco, box_mask, encode):
    coco = make_coco()
    coco.image((10, 12))
    base = CocoInstances(coco.write(), coco.images, name="train")
    result = {"image_id": 1, "category_id": 1, "segmentation": encode(box_mask(9, 9, 0, 0, 2, 2)), "score": 1.0}
    with pytest.raises(DataError, match=r"train: pseudo-labels: results of the categories \[1\]; expected only \[2\]"):
        PseudoLabeled(base, [result], [2])
    with pytest.raises(DataError, match=r"train: pseudo-labels of image 1: RLE of size \[9, 9\]; expected \[10, 12\]"):
        PseudoLabeled(base, [result], [1])[0]


def test_unlabeled_hides_every_trace_of_the_labels(make_coco, box_mask):
    coco = make_coco()
    coco.image((10, 12))
    coco.instance(1, box_mask(10, 12, 0, 0, 9, 9))
    base = CocoInstances(coco.write(), coco.images)
    plain = unlabeled(base)
    assert plain[0].instances is None and torch.equal(plain[0].image, base[0].image)
    assert not hasattr(plain, "ground_truth") and b"segmentation" not in pickle.dumps(plain)


def test_real_photographs_agree_with_an_independent_decoding(real_data):
    folder = real_data("coco_mini")
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    source = CocoInstances(file, folder / "images")
    assert len(source) == 27 and len(source.class_names) == 80 and source.category_ids[-1] == 90
    total = 0
    for index in range(len(source)):
        sample = source[index]
        own = [entry for entry in content["annotations"] if entry["image_id"] == sample.image_id]
        assert sample.image.shape[1:] == source.size(index) == sample.instances.masks.shape[1:]
        assert sample.instances.masks.flatten(1).sum(1).tolist() == [entry["area"] for entry in own]
        assert [source.category_ids[label] for label in sample.instances.labels] == [e["category_id"] for e in own]
        total += len(sample.instances)
    assert total == 174


def test_real_nuclei_are_all_read(real_data):
    folder = real_data("nuclei_dsb2018")
    source = CocoInstances(folder / "annotations" / "instances_val.json", folder / "images")
    assert len(source) == 140 and len(set(source.image_field("group"))) == 56
    layers = [source.mask_layers(index) for index in range(len(source))]
    assert sum(len(layer.labels) for layer in layers) == 6466
    assert all(len(layer.ids) == 1 for layer in layers)
