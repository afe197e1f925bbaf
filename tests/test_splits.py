"""Labelled subsets: sizes, whole groups, strata, and files that cannot change unseen."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace

import pytest

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.embedded import write_scenes
from sskd_fast.data.errors import DataError
from sskd_fast.data.source import ImageCollection, ImageRecord
from sskd_fast.data.splits import fold_ids, group_count, kept_split, read_split, split_labeled, write_split


def collection(tmp_path, extras):
    """A set of images that are never opened, with these fields."""
    records = [ImageRecord(10 + n, f"{n}.png", tmp_path, (4, 4), extra) for n, extra in enumerate(extras)]
    return ImageCollection(records, tmp_path, name="train")


def grouped(tmp_path, count=120):
    kinds = ["common", "common", "common", "rare"]
    return collection(tmp_path, [{"group": str(n // 3), "kind": kinds[(n // 3) % 4]} for n in range(count)])


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, 10), (0.05, 5), (0.001, 1), (0.5, 50), (1.0, 100)])
def test_fraction_of_the_images_is_labelled(tmp_path, fraction, expected):
    dataset = collection(tmp_path, [{}] * 100)
    labeled, rest = split_labeled(dataset, fraction, seed=0)
    assert len(labeled) == expected
    assert sorted(labeled + rest) == dataset.image_ids and not set(labeled) & set(rest)
    assert labeled == sorted(labeled)


def test_same_seed_same_split_and_another_seed_another(tmp_path):
    dataset = grouped(tmp_path)
    assert split_labeled(dataset, 0.2, seed=1) == split_labeled(dataset, 0.2, seed=1)
    assert split_labeled(dataset, 0.2, seed=1) != split_labeled(dataset, 0.2, seed=2)


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_strata_keep_their_share(tmp_path, seed):
    dataset = grouped(tmp_path)
    labeled, rest = split_labeled(dataset, 0.25, seed=seed, group_key="group", stratify_key="kind")
    group = dict(zip(dataset.image_ids, dataset.image_field("group"), strict=True))
    kind = dict(zip(dataset.image_ids, dataset.image_field("kind"), strict=True))
    assert not {group[i] for i in labeled} & {group[i] for i in rest}
    assert len(labeled) == 30
    assert 6 <= Counter(kind[i] for i in labeled)["rare"] <= 9


def test_every_stratum_is_labelled_even_where_its_share_is_below_one(tmp_path):
    dataset = collection(tmp_path, [{"kind": "rare" if n < 2 else "common"} for n in range(200)])
    labeled, _ = split_labeled(dataset, 0.05, seed=3, stratify_key="kind")
    assert len(set(labeled) & {10, 11}) == 1 and len(labeled) == 10


@pytest.mark.parametrize("fraction", [0.0, 1.5, -0.1])
def test_fraction_outside_its_range_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match=f"fraction={fraction}: expected a share"):
        split_labeled(collection(tmp_path, [{}] * 4), fraction, seed=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_are_disjoint_cover_the_set_and_keep_groups_whole(tmp_path, count, seed):
    dataset = grouped(tmp_path)
    folds = fold_ids(dataset, count, seed=seed, group_key="group", stratify_key="kind")
    assert len(folds) == count
    assert sorted(i for fold in folds for i in fold) == dataset.image_ids
    assert all(fold == sorted(fold) for fold in folds)
    field = {key: dict(zip(dataset.image_ids, dataset.image_field(key), strict=True)) for key in ("group", "kind")}
    groups = [{field["group"][i] for i in fold} for fold in folds]
    assert sum(map(len, groups)) == 40
    rare = [sum(field["kind"][i] == "rare" for i in fold) for fold in folds]
    assert max(rare) - min(rare) <= 3 and max(map(len, folds)) - min(map(len, folds)) <= 3  # a group


def test_folds_differ_by_seed_alone(tmp_path):
    dataset = grouped(tmp_path)
    assert fold_ids(dataset, 3, seed=1) == fold_ids(dataset, 3, seed=1) != fold_ids(dataset, 3, seed=2)


def test_records_of_one_file_and_files_of_one_content_are_one_group(tmp_path):
    dataset = collection(tmp_path, [{"group": "a"}, {"group": "b"}, {"group": "c"}, {"group": "d"}])
    one, *_, last = dataset.records
    dataset.records[1] = replace(dataset.records[1], file_name=f"../{tmp_path.name}/{one.file_name}")
    (tmp_path / "link.png").symlink_to(last.path)
    dataset.records[2] = replace(dataset.records[2], file_name="link.png")
    assert group_count(dataset, "group") == 2 == group_count(dataset, None)
    for seed in range(10):
        labeled = set(split_labeled(dataset, 0.5, seed=seed, group_key="group")[0])
        assert labeled in ({10, 11}, {12, 13})


def test_names_that_are_no_unicode_have_a_hash(tmp_path):
    dataset = collection(tmp_path, [{}] * 2)
    dataset.records[0] = replace(dataset.records[0], file_name=os.fsdecode(b"caf\xe9.png"))
    assert kept_split(tmp_path / "ids.txt", dataset, lambda: [10]) == [10]


def test_there_are_no_more_folds_than_groups(tmp_path):
    dataset = collection(tmp_path, [{"group": "a"}] * 9 + [{"group": "b"}])
    assert fold_ids(dataset, 3, seed=0, group_key="group") == [list(range(10, 19)), [19]]
    assert group_count(dataset, "group") == 2 and group_count(dataset, None) == 10
    with pytest.raises(ValueError, match="count=0: expected at least 1 fold"):
        fold_ids(dataset, 0, seed=0)


def test_a_rare_class_spreads_over_the_folds(tmp_path):
    """Scenes whose instances are of one class each: the rare one is on three images, one a fold."""
    write_scenes(tmp_path, "train", "target", 12, seed=3)
    content = json.loads((tmp_path / "train.json").read_text())
    rare = {image["id"] for image in content["images"][:3]}
    for annotation in content["annotations"]:
        annotation["category_id"] = 2 if annotation["image_id"] in rare else 1
    (tmp_path / "train.json").write_text(json.dumps(content))
    labeled = CocoInstances(tmp_path / "train.json", tmp_path / "train")
    for seed in range(5):
        folds = fold_ids(labeled, 3, seed=seed)
        assert [len(rare & set(fold)) for fold in folds] == [1, 1, 1] and [len(fold) for fold in folds] == [4, 4, 4]


def test_split_file_is_read_back_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "splits" / "labeled.txt"
    write_split(path, [3, 1, 2], source="instances.json")
    assert read_split(path) == [3, 1, 2]
    text = path.read_text(encoding="utf-8")
    assert "# 3 image ids of instances.json" in text and text.splitlines()[2:] == ["3", "1", "2"]
    assert [entry.name for entry in path.parent.iterdir()] == ["labeled.txt"]


@pytest.mark.parametrize("change", [lambda t: t + "9\n", lambda t: t.replace("\n3\n", "\n4\n"), lambda t: "1\n2\n"])
def test_edited_split_file_is_refused_with_its_name(tmp_path, change):
    path = tmp_path / "labeled.txt"
    write_split(path, [3, 1, 2])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"labeled.txt: the \d ids have the sha256 .*The file was edited"):
        read_split(path)


def test_split_file_that_is_missing_or_holds_no_ids_is_named(tmp_path):
    with pytest.raises(DataError, match=r"labeled\.txt: the split file does not exist"):
        read_split(tmp_path / "labeled.txt")
    (tmp_path / "labeled.txt").write_text("# ids\nfirst\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"labeled\.txt: line 2: 'first'; expected an image id"):
        read_split(tmp_path / "labeled.txt")


def test_a_kept_split_is_drawn_once(tmp_path):
    dataset = collection(tmp_path, [{}] * 5)
    path = tmp_path / "splits" / "labeled.txt"
    assert kept_split(path, dataset, lambda: [11, 13]) == [11, 13]
    assert kept_split(path, dataset, lambda: pytest.fail("drawn again")) == [11, 13]
    assert "# 2 image ids of train" in path.read_text(encoding="utf-8")


def test_of_two_that_draw_at_once_the_first_to_write_wins(tmp_path):
    dataset = collection(tmp_path, [{}] * 5)
    path = tmp_path / "labeled.txt"

    def slow():
        write_split(path, [12], dataset=dataset)  # another process, meanwhile
        return [11, 13]

    assert kept_split(path, dataset, slow) == [12]
    assert [entry.name for entry in tmp_path.iterdir()] == ["labeled.txt"]


def test_ids_that_stand_for_other_files_than_before_are_refused(tmp_path):
    dataset = collection(tmp_path, [{}] * 5)
    path = tmp_path / "labeled.txt"
    kept_split(path, dataset, lambda: [11, 13])
    dataset.records[1] = ImageRecord(11, "new.png", tmp_path, (4, 4))
    with pytest.raises(DataError, match=r"under its ids, train has other image files than when they were drawn"):
        kept_split(path, dataset, list)
    with pytest.raises(DataError, match=r"1 ids that train does not have \(13\); expected ids of its 2 images"):
        kept_split(path, collection(tmp_path, [{}] * 2), list)
