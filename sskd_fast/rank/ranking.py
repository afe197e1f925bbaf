"""Images ordered by the disagreement of a run's teacher and student."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from sskd_fast.data.errors import DataError
from sskd_fast.data.places import find_files
from sskd_fast.data.source import ImageCollection, ImageRecord
from sskd_fast.mask_matching import by_image
from sskd_fast.rank.disagreement import Comparison, compare
from sskd_fast.rank.judges import Judge
from sskd_fast.source_prediction import source_groups


@dataclass(frozen=True)
class RankedImage:
    """An image with the labels of both models.  file: its path below the image folder.  size: (H, W) in pixels."""

    file: str
    size: tuple[int, int]
    comparison: Comparison

    def row(self, rank: int) -> dict[str, Any]:
        """The image as a row of the ranking."""
        found = self.comparison
        return {
            "rank": rank,
            "file": self.file,
            "disagreement": round(found.disagreement, 4),
            "teacher": len(found.teacher),
            "student": len(found.student),
            "agreed": len(found.pairs),
        }


def open_images(places: Sequence[str], *, stretch: bool) -> ImageCollection:
    """The images of files, folders and globs, without duplicates.  Raises InputError if a place has none.

    Their folder is their deepest common one.  Skipped files are named on stderr.
    """
    found = find_files(places)
    for note in found.notes:
        print(note, file=sys.stderr)
    records = [ImageRecord(number, name, found.folder, numbered=True) for number, name in enumerate(found.names, 1)]
    return ImageCollection(records, found.folder, stretch=stretch)


def rank_images(source: ImageCollection, teacher: Judge, student: Judge) -> list[RankedImage]:
    """The images of a source sorted by falling disagreement, then by name.

    An unreadable image is named on stderr and left out.
    """
    ranked: list[RankedImage] = []
    with tqdm(total=len(source), desc="images", disable=None) as bar:
        for rows in source_groups(source, _readable(source)):
            ours, theirs = (by_image(judge.labels(source, rows)) for judge in (teacher, student))
            for row in rows:
                record, size = source.records[row], source.size(row)
                found = compare(ours.get(record.image_id, []), theirs.get(record.image_id, []), size)
                ranked.append(RankedImage(record.file_name, size, found))
            bar.update(len(rows))
    return sorted(ranked, key=lambda image: (-image.comparison.disagreement, image.file))


def _readable(source: ImageCollection) -> Iterator[int]:
    """The indices of the images that can be decoded; the source caches their pixels for the models."""
    for row in range(len(source)):
        try:
            source.pixels(row)
        except DataError as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
        else:
            yield row
