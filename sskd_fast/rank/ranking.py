"""Images ordered by the disagreement of a run's teacher and student."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.source import ImageCollection, ImageRecord
from sskd_fast.mask_matching import by_image
from sskd_fast.rank.disagreement import Comparison, compare
from sskd_fast.rank.judges import Judge
from sskd_fast.source_prediction import source_groups


@dataclass(frozen=True)
class RankedImage:
    """An image with the labels of both models.  file: its path below the images' folder.  size: (H, W)."""

    file: str
    size: tuple[int, int]
    comparison: Comparison

    def row(self, rank: int) -> dict[str, Any]:
        """The image as a line of the ranking."""
        found = self.comparison
        return {
            "rank": rank, "file": self.file, "disagreement": round(found.disagreement, 4),
            "teacher": len(found.teacher), "student": len(found.student), "agreed": len(found.pairs),
        }  # fmt: skip


def open_images(places: Sequence[Path], *, stretch: bool) -> ImageCollection:
    """The images named, and those below the folders named, each once; DataError if a place holds none.

    Their folder is the one named, or the one that holds all of them.
    """
    paths: list[Path] = []
    for place in places:
        paths += [place] if place.is_file() else [record.path for record in ImageFolder(place).records]
    folders = [place if place.is_dir() else place.parent for place in places]
    root = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))
    names = dict.fromkeys(Path(os.path.relpath(path, root)).as_posix() for path in paths)
    records = [ImageRecord(number, name, root / name) for number, name in enumerate(names, 1)]
    return ImageCollection(records, root, stretch=stretch)


def rank_images(source: ImageCollection, teacher: Judge, student: Judge) -> list[RankedImage]:
    """The images of a source, those with the largest disagreement first, equal ones by name.

    Raises DataError for an image that cannot be read.
    """
    ranked: list[RankedImage] = []
    with tqdm(total=len(source), desc="images", disable=None) as bar:
        for rows in source_groups(source):
            ours, theirs = (by_image(judge.labels(source, rows)) for judge in (teacher, student))
            for row in rows:
                record, size = source.records[row], source.size(row)
                found = compare(ours.get(record.image_id, []), theirs.get(record.image_id, []), size)
                ranked.append(RankedImage(record.file_name, size, found))
            bar.update(len(rows))
    return sorted(ranked, key=lambda image: (-image.comparison.disagreement, image.file))
