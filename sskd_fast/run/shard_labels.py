"""Labels of many images, shard by shard. A shard that exists is complete and is kept, whatever process wrote it."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.source import ImageCollection, ImageRecord
from sskd_fast.data.tars import tar_of
from sskd_fast.files import remove_partial
from sskd_fast.mask_matching import by_image
from sskd_fast.models.augmented import Augmentation
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.pseudo_labels import Selection
from sskd_fast.pseudo_labels.shards import ImageLabels, LabelShards, is_whole, shard_files, shard_path, write_shard
from sskd_fast.run.contents import Digests, hash_of
from sskd_fast.run.models import predicted
from sskd_fast.source_prediction import IMAGES_AT_ONCE


@dataclass(frozen=True)
class Shard:
    """The images whose labels go into one file.  number: from 0 on.  content: a hash of their names and bytes."""

    number: int
    records: Sequence[ImageRecord]
    content: str

    @property
    def image_ids(self) -> list[int]:
        """The ids of the images, in order."""
        return [record.image_id for record in self.records]


@dataclass
class ShardLabeller:
    """A teacher with all that its labels depend on, which writes shards of labels to a folder; it can be pickled.

    key: a hash of all that but the images, which the files hold; their names have a hash of it and of the images.
    images_dir, stretch: of the images (ImageCollection).
    """

    model: Segmenter
    inference: InferenceConfig
    views: Sequence[Augmentation]
    category_ids: Sequence[int]
    selection: Selection
    images_dir: Path
    stretch: bool
    folder: Path
    key: str

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        key = hashlib.sha256(f"{self.key} {shard.content}".encode()).hexdigest()
        return shard_path(self.folder, shard.number, key)

    def label(self, shard: Shard) -> str:
        """Writes a shard. Returns "" or, if that fails, a line that names the shard and the images being labelled."""
        images = ImageCollection(
            shard.records, self.images_dir, category_ids=self.category_ids, stretch=self.stretch, cache_bytes=0
        )
        at_work = [0, 0]
        try:
            write_shard(self.path(shard), self.key, self._labelled(images, at_work))
        except Exception as error:  # an error from a model or an image must not stop the other shards
            first, last = (shard.records[at_work[0]], shard.records[max(at_work[0], at_work[1] - 1)])
            among = f"images {first.image_id} ({first.file_name}) to {last.image_id} ({last.file_name})"
            return f"shard {shard.number}, {among}: {type(error).__name__}: {error}"
        return ""

    def _labelled(self, images: ImageCollection, at_work: list[int]) -> Iterator[ImageLabels]:
        """Yields the labels image by image; at_work: set to the range of images being labelled."""
        for start in range(0, len(images), IMAGES_AT_ONCE):
            rows = range(start, min(start + IMAGES_AT_ONCE, len(images)))
            at_work[:] = rows.start, rows.stop
            found = predicted(self.model, self.inference, images, self.category_ids, rows, self.views)
            labels = by_image(self.selection.labels(self.selection.objects(found)))
            for row in rows:
                record = images.records[row]
                yield ImageLabels(record.image_id, record.file_name, images.size(row), labels.get(record.image_id, []))


Work = Callable[[ShardLabeller, Sequence[Shard]], Iterable[tuple[int, str]]]


def one_process(labeller: ShardLabeller, shards: Sequence[Shard]) -> Iterator[tuple[int, str]]:
    """Labels shards one after another; yields the number of each, and the reason if it failed."""
    for shard in shards:
        yield shard.number, labeller.label(shard)


def shards_of(source: ImageCollection, digests: Digests, size: int) -> list[Shard]:
    """The images of a source in shards, in order: `size` images of a folder (or the rest), or a tar archive.

    digests: those of `digests_of` for the source.
    """
    parts: list[Sequence[ImageRecord]] = []
    for tar, records in itertools.groupby(source.records, lambda record: _archive(record.path.parent)):
        alike = list(records)
        step = size if tar is None else len(alike)
        parts += [alike[start : start + step] for start in range(0, len(alike), step)]
    starts = itertools.accumulate((len(part) for part in parts), initial=0)
    return [
        Shard(number, part, hash_of(part, digests[start : start + len(part)]))
        for number, (part, start) in enumerate(zip(parts, starts, strict=False))
    ]


@functools.lru_cache
def _archive(folder: Path) -> Path | None:
    """The archive that has the files of this folder; None for a real folder."""
    return tar_of(folder / "file")


def label_shards(labeller: ShardLabeller, shards: Sequence[Shard], work: Work = one_process) -> LabelShards:
    """The labels of all shards. Complete files are kept, and `work` labels the others.

    Files with other keys are removed at the end.  If shards fail, raises DataError once the others are done; it lists
    the failed shards with their images.
    """
    missing = [shard for shard in shards if not is_whole(labeller.path(shard), labeller.key, shard.image_ids)]
    sizes, failed = {shard.number: len(shard.records) for shard in shards}, []
    with tqdm(total=sum(sizes.values()), desc="images labelled by shards", mininterval=1.0) as bar:
        bar.update(sum(sizes.values()) - sum(len(shard.records) for shard in missing))
        for number, error in work(labeller, missing) if missing else ():
            bar.update(sizes[number])
            failed += [error] if error else []
    if failed:
        cure = "See to these images or the memory, and start again: the other shards are kept."
        expected = f"labels in all {len(shards)} shards"
        raise DataError([Problem(labeller.folder, "", error, expected, cure) for error in sorted(failed)])
    paths = [labeller.path(shard) for shard in shards]
    remove_partial(labeller.folder)  # left by killed workers
    for stale in set(shard_files(labeller.folder)) - set(paths):
        stale.unlink()
    return LabelShards(paths)
