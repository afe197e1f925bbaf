"""Pseudo-labels of many images as Parquet files: one file per shard, one row per image, read a few rows at a time."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pycocotools.mask as coco_mask

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.pixels import ByteBudgetCache
from sskd_fast.files import write_atomically

# Images per row group: reading the labels of one image reads those of this many.
GROUP = 64
_CACHED_BYTES, _OPEN_FILES = 32 << 20, 64
_ABOUT = b"sskd_fast.labels"
_INSTANCE = pa.struct(
    [
        ("category_id", pa.int64()),
        ("score", pa.float64()),
        ("unsure", pa.bool_()),
        ("box", pa.list_(pa.float64(), 4)),
        ("counts", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("instances", pa.list_(_INSTANCE)),
    ]
)


@dataclass(frozen=True)
class ImageLabels:
    """The labels of an image of `size` (height, width): COCO results, unsure ones with "iscrowd": 1."""

    image_id: int
    file_name: str
    size: tuple[int, int]
    results: list[dict[str, Any]]


def shard_path(folder: Path, number: int, key: str) -> Path:
    """The path of a shard; key: hex digits of a hash of all that its labels depend on, its images included."""
    return folder / f"{number:05d}-{key[:12]}.parquet"


def shard_files(folder: Path) -> list[Path]:
    """The files in a folder that are named like a shard, with any key, in order."""
    return sorted(path for path in folder.glob("*.parquet") if re.fullmatch(r"\d{5,}-[0-9a-f]{12}", path.stem))


def write_shard(path: Path, key: str, images: Iterable[ImageLabels]) -> None:
    """Writes a shard atomically; holds at most one row group of images in memory.

    key: a hash of the teacher, its settings and the thresholds, which all shards of one labelling share.
    """
    write_atomically(path, lambda partial: _write(partial, key, iter(images)))


def _write(path: Path, key: str, images: Iterator[ImageLabels]) -> None:
    categories: set[int] = set()
    sure = unsure = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while group := list(itertools.islice(images, GROUP)):
            writer.write_table(pa.Table.from_pylist([_row(image) for image in group], SCHEMA))
            results = [result for image in group for result in image.results]
            categories |= {int(result["category_id"]) for result in results}
            crowd = sum(bool(result.get("iscrowd", 0)) for result in results)
            sure, unsure = sure + len(results) - crowd, unsure + crowd
        about = {"key": key, "categories": sorted(categories), "sure": sure, "unsure": unsure}
        writer.add_key_value_metadata({_ABOUT: json.dumps(about)})


def _row(image: ImageLabels) -> dict[str, Any]:
    instances = [
        {
            "category_id": result["category_id"],
            "score": result["score"],
            "unsure": bool(result.get("iscrowd", 0)),
            "box": coco_mask.toBbox(result["segmentation"]).tolist(),
            "counts": result["segmentation"]["counts"],
        }
        for result in image.results
    ]
    height, width = image.size
    return {
        "image_id": image.image_id,
        "file_name": image.file_name,
        "height": height,
        "width": width,
        "instances": instances,
    }


def is_whole(path: Path, key: str, image_ids: Sequence[int]) -> bool:
    """True for a shard written under this key with exactly these images in this order."""
    try:
        with pq.ParquetFile(path) as file:
            return _about(path, file)["key"] == key and _image_ids(file).tolist() == list(image_ids)
    except (FileNotFoundError, DataError, pa.ArrowException):
        return False


class LabelShards:
    """The labels in shard files, read on demand; keeps 24 bytes per image in memory.

    categories: COCO ids that occur.  sure, unsure: total numbers of labels.  groups: cache of the last row groups read.
    Raises DataError for a file that is not a shard, a shard with another key than the first, or an image in two shards.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        abouts, ids, groups = [], [], []
        for number, path in enumerate(self.paths):
            with _open(path) as file:
                abouts.append(_about(path, file))
                ids.append(_image_ids(file))
                rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                groups += [(number, g, count) for g, count in enumerate(rows)]
        _check_keys(self.paths, abouts)
        self.categories = {category for about in abouts for category in about["categories"]}
        self.sure, self.unsure = (sum(about[name] for about in abouts) for name in ("sure", "unsure"))
        every = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        self._rows = np.argsort(every, kind="stable")
        self._ids = every[self._rows]
        self._groups = np.array(groups, np.int64).reshape(-1, 3)
        self._starts = np.cumsum(self._groups[:, 2]) - self._groups[:, 2]
        self.groups: ByteBudgetCache[pa.Table] = ByteBudgetCache(_CACHED_BYTES)
        twice = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(twice):
            files = sorted({self._place(int(row))[0].name for row in self._rows[[twice[0], twice[0] + 1]]})
            found = f"labels of image {self._ids[twice[0]]} twice, in {' and '.join(files)}"
            raise DataError(
                [Problem(self.paths[0].parent, "", found, "an image in one shard", "Label the images again.")]
            )

    def __len__(self) -> int:
        """The total number of images."""
        return len(self._ids)

    def of_image(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results of an image.  Raises DataError if it is in none of the shards."""
        place = int(np.searchsorted(self._ids, image_id))
        if place == len(self) or self._ids[place] != image_id:
            folder = self.paths[0].parent if self.paths else Path("pseudo_labels")
            found = f"no labels of image {image_id} in {len(self.paths)} shards"
            raise DataError([Problem(folder, "", found, "a row for each image", "Label the images again.")])
        path, group, row = self._place(int(self._rows[place]))
        table = self.groups.get((path, group), lambda: _read_group(path, group))
        return _results(table.slice(row, 1).to_pylist()[0])

    def by_image(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yields image ids with their COCO results in the order of the shards, one row group in memory at a time."""
        for number, group, _ in self._groups.tolist():
            for row in _read_group(self.paths[number], group).to_pylist():
                yield row["image_id"], _results(row)

    def _place(self, row: int) -> tuple[Path, int, int]:
        """The file, row group, and row within it for a row number over all shards."""
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        number, group, _ = self._groups[at].tolist()
        return self.paths[number], group, row - int(self._starts[at])


def _results(row: dict[str, Any]) -> list[dict[str, Any]]:
    size = [row["height"], row["width"]]
    return [
        {
            "image_id": row["image_id"],
            "category_id": found["category_id"],
            "score": found["score"],
            "segmentation": {"size": size, "counts": found["counts"]},
            "iscrowd": int(found["unsure"]),
        }
        for found in row["instances"]
    ]


def _check_keys(paths: Sequence[Path], abouts: Sequence[dict[str, Any]]) -> None:
    for path, about in zip(paths, abouts, strict=True):
        if about["key"] != abouts[0]["key"]:
            found = f"labels of another teacher, or with other settings or thresholds, than {paths[0].name}"
            raise DataError([Problem(path, "", found, "shards of one labelling", "Remove the file and label again.")])


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        found = "the file does not exist"
    except pa.ArrowException as error:
        found = f"the file cannot be read as Parquet ({' '.join(str(error).split())[:120]})"
    raise DataError([Problem(path, "", found, "a shard of pseudo-labels", "Remove the file and label again.")])


def _about(path: Path, file: pq.ParquetFile) -> dict[str, Any]:
    """The description that `write_shard` stored in the file.  Raises DataError if there is none."""
    content = (file.metadata.metadata or {}).get(_ABOUT)
    if content is None or file.schema_arrow.remove_metadata() != SCHEMA:
        found = f"a Parquet file with the columns {', '.join(file.schema_arrow.names)} that this package did not write"
        raise DataError([Problem(path, "", found, "a shard of pseudo-labels", "Remove the file and label again.")])
    return dict(json.loads(content))


def _image_ids(file: pq.ParquetFile) -> np.ndarray:
    return file.read(columns=["image_id"], use_threads=False)["image_id"].to_numpy()


@functools.lru_cache(_OPEN_FILES)
def _opened(path: Path) -> pq.ParquetFile:
    return _open(path)


def _read_group(path: Path, group: int) -> pa.Table:
    """A row group, read by one thread because data loader workers are forked."""
    columns = [name for name in SCHEMA.names if name != "file_name"]
    try:
        return _opened(path).read_row_group(group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        found = f"row group {group} cannot be read ({' '.join(str(error).split())[:120]})"
        raise DataError([Problem(path, "", found, "a whole shard", "Remove the file and label again.")]) from error
