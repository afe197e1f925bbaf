"""Labelled subsets: sizes, whole groups, strata, and files that cannot change unseen."""

from __future__ import annotations

from collections import Counter

import pytest

from sskd_fast.data.errors import DataError
from sskd_fast.data.source import ImageCollection, ImageRecord
from sskd_fast.data.splits import hold_out, kept_split, read_split, split_labeled, write_split


def collection(tmp_path, extras):
    """A set of images that are never opened, with these fields."""
    records = [ImageRecord(10 + n, f"{n}.png", tmp_path / f"{n}.png", (4, 4), extra) for n, extra in enumerate(extras)]
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


def test_held_out_images_come_from_the_labelled_ones_in_whole_groups(tmp_path):
    dataset = grouped(tmp_path)
    labeled, _ = split_labeled(dataset, 0.5, seed=0, group_key="group")
    train, held = hold_out(dataset, labeled, 0.2, seed=0, group_key="group")
    group = dict(zip(dataset.image_ids, dataset.image_field("group"), strict=True))
    assert sorted(train + held) == labeled and len(held) == 12
    assert not {group[i] for i in train} & {group[i] for i in held}


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_both_sides_of_a_hold_out_get_an_image(tmp_path, fraction):
    dataset = collection(tmp_path, [{"group": "a"}] * 9 + [{"group": "b"}])
    train, held = hold_out(dataset, dataset.image_ids, fraction, seed=0, group_key="group")
    assert train and held and len(train) + len(held) == 10


def test_hold_out_of_a_single_group_says_the_way_out(tmp_path):
    dataset = collection(tmp_path, [{"group": "a"}] * 9)
    with pytest.raises(ValueError, match="train: 1 groups of 'group' among 9 labelled images; expected at least 2"):
        hold_out(dataset, dataset.image_ids, 0.2, seed=0, group_key="group")


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
    dataset.records[1] = ImageRecord(11, "new.png", tmp_path / "new.png", (4, 4))
    with pytest.raises(DataError, match=r"under its ids, train has other image files than when they were drawn"):
        kept_split(path, dataset, list)
    with pytest.raises(DataError, match=r"1 ids that train does not have \(13\); expected ids of its 2 images"):
        kept_split(path, collection(tmp_path, [{}] * 2), list)
