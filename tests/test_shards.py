"""Pseudo-labels in shards: written atomically, read lazily, with the same batches as a list of these labels."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sskd_fast.data.batches import batches
from sskd_fast.data.embedded import write_scenes
from sskd_fast.data.errors import DataError
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.pseudo_labeled import PseudoLabeled
from sskd_fast.data.views import Views
from sskd_fast.rle import rle_of_box

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from sskd_fast.pseudo_labels.shards import (
    GROUP,
    ImageLabels,
    LabelShards,
    is_whole,
    shard_files,
    shard_path,
    write_shard,
)

KEY, OTHER = "a" * 64, "b" * 64
SIZE = (64, 64)


def results_of(image_id: int, count: int) -> list[dict[str, Any]]:
    """This many boxes as COCO results, every third one unsure."""
    draw = np.random.default_rng(image_id)
    results = []
    for number in range(count):
        top, left, height, width = (int(n) for n in draw.integers(1, 30, 4))
        code = rle_of_box(np.ones((height, width), dtype=np.bool_), top, left, *SIZE)
        results.append(
            {
                "image_id": image_id,
                "category_id": 3 + number % 2,
                "iscrowd": int(number % 3 == 2),
                "segmentation": {"size": list(SIZE), "counts": code["counts"].decode()},
                "score": round(float(draw.random()), 6),
            }
        )
    return results


def images_of(ids: range) -> list[ImageLabels]:
    return [ImageLabels(i, f"{i}.png", SIZE, results_of(i, i % 5)) for i in ids]


def written(folder: Path, *parts: range) -> list[Path]:
    paths = [shard_path(folder, number, KEY) for number in range(len(parts))]
    for path, ids in zip(paths, parts, strict=True):
        write_shard(path, KEY, images_of(ids))
    return paths


def test_a_shard_gives_back_the_results_it_was_written_from(tmp_path: Path) -> None:
    paths = written(tmp_path, range(1, 150), range(150, 171))
    assert [path.name for path in paths] == ["00000-aaaaaaaaaaaa.parquet", "00001-aaaaaaaaaaaa.parquet"]
    shards = LabelShards(paths)
    assert len(shards) == 170 and shards.categories == {3, 4}
    for image_id in (170, 1, 64, 65, 149, 150):
        assert shards.of_image(image_id) == results_of(image_id, image_id % 5)
    assert dict(shards.by_image()) == {i: results_of(i, i % 5) for i in range(1, 171)}
    every = [result for i in range(1, 171) for result in results_of(i, i % 5)]
    assert shards.unsure == sum(r["iscrowd"] for r in every) and shards.sure + shards.unsure == len(every)
    row = pq.read_table(paths[0]).slice(3, 1).to_pylist()[0]
    assert (row["image_id"], row["file_name"], row["height"], row["width"]) == (4, "4.png", 64, 64)
    assert row["instances"][0]["box"][2] >= 1


def test_the_labels_of_an_image_cost_one_row_group(tmp_path: Path) -> None:
    shards = LabelShards(written(tmp_path, range(10 * GROUP)))
    assert len(shards.groups) == 0
    for image_id in (3 * GROUP, 3 * GROUP + 1, 4 * GROUP - 1):
        shards.of_image(image_id)
    assert len(shards.groups) == 1 and shards.groups.nbytes < 3 * GROUP * 1000
    shards.of_image(9 * GROUP)
    copy = pickle.loads(pickle.dumps(shards))
    assert len(shards.groups) == 2 and len(copy.groups) == 0, "another process reads for itself"
    assert copy.of_image(9 * GROUP) == shards.of_image(9 * GROUP)


def test_a_shard_is_whole_or_not_there(tmp_path: Path) -> None:
    def failing() -> Iterator[ImageLabels]:
        yield from images_of(range(GROUP + 1))
        raise MemoryError("no room")

    path = shard_path(tmp_path, 0, KEY)
    with pytest.raises(MemoryError):
        write_shard(path, KEY, failing())
    assert list(tmp_path.iterdir()) == [] and not is_whole(path, KEY, [0])
    write_shard(path, KEY, images_of(range(3)))
    assert is_whole(path, KEY, [0, 1, 2])
    assert not is_whole(path, OTHER, [0, 1, 2]) and not is_whole(path, KEY, [0, 1])
    path.write_bytes(path.read_bytes()[:-20])
    assert not is_whole(path, KEY, [0, 1, 2])


def test_a_shard_of_no_image_is_read(tmp_path: Path) -> None:
    shards = LabelShards(written(tmp_path, range(0)))
    assert len(shards) == 0 and dict(shards.by_image()) == {}
    for empty, folder, count in ((shards, tmp_path.name, 1), (LabelShards([]), "pseudo_labels", 0)):
        with pytest.raises(DataError, match=rf"{folder}: no labels of image 7 in {count} shards"):
            empty.of_image(7)


def test_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    first, second = written(tmp_path, range(3), range(3, 6))
    with pytest.raises(DataError, match=r"no labels of image 7 in 2 shards; expected a row for each image"):
        LabelShards([first, second]).of_image(7)
    with pytest.raises(DataError, match=r"labels of image 0 twice, in 00000-aaaaaaaaaaaa.parquet; .* Label the images"):
        LabelShards([first, first])
    write_shard(second, OTHER, images_of(range(3, 6)))
    with pytest.raises(DataError, match=r"00001-a{12}.parquet: labels of another teacher, .* than 00000-a{12}.parquet"):
        LabelShards([first, second])
    second.write_bytes(b"PAR1 and nothing of the kind")
    with pytest.raises(DataError, match=r"00001-a{12}.parquet: the file cannot be read as Parquet .* Remove the file"):
        LabelShards([first, second])
    pq.write_table(pa.table({"a": [1]}), second)
    with pytest.raises(DataError, match=r"a Parquet file with the columns a that this package did not write"):
        LabelShards([first, second])
    second.unlink()
    with pytest.raises(DataError, match=r"00001-a{12}.parquet: the file does not exist"):
        LabelShards([first, second])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    assert shard_files(tmp_path) == [first], "a file of another name is not ours"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("weighted", [True, False])
def test_batches_are_the_same_from_shards_and_from_a_list(tmp_path: Path, workers: int, weighted: bool) -> None:
    write_scenes(tmp_path, "plain", "target", 5, seed=1)
    base = ImageFolder(tmp_path / "plain")
    size = base.size(0)
    assert size == SIZE
    results = [result for image_id in base.image_ids for result in results_of(image_id, 2 + image_id)]
    half = [ImageLabels(i, "", SIZE, results_of(i, 2 + i)) for i in base.image_ids]
    paths = [shard_path(tmp_path / "shards", number, KEY) for number in range(2)]
    write_shard(paths[0], KEY, half[:3])
    write_shard(paths[1], KEY, half[3:])
    views = Views(size=(64, 64))
    streams = [
        batches(PseudoLabeled(base, labels, [3, 4], class_names=["a", "b"], weighted=weighted), 3, views, seed=5,
                steps=3, workers=workers)
        for labels in (json.loads(json.dumps(results)), LabelShards(paths))
    ]  # fmt: skip
    instances = 0
    for one, other in zip(*streams, strict=True):
        assert one.image_ids == other.image_ids
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("weak", "strong", "valid"))
        for a, b in zip(one.targets, other.targets, strict=True):
            assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("masks", "labels", "scores"))
            assert weighted or a.scores.eq(1).all()
            instances += len(a)
    assert instances > 0


def test_a_category_that_the_data_does_not_have_is_named(tmp_path: Path) -> None:
    write_scenes(tmp_path, "plain", "target", 1, seed=1)
    shards = LabelShards(written(tmp_path / "shards", range(1, 5)))
    with pytest.raises(DataError, match=r"results of the categories \[4\]; expected only \[3\]"):
        PseudoLabeled(ImageFolder(tmp_path / "plain"), shards, [3])
