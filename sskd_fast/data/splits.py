"""Labelled subsets of a data set: drawn in whole groups, evenly over strata, and saved with a hash."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sskd_fast.data.copies import copies
from sskd_fast.data.errors import DataError, Problem, named
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection
from sskd_fast.files import encoded, write_text

_HASH_PREFIX = "# sha256 of the ids: "
_NAMES_PREFIX = "# sha256 of their file names: "


def split_labeled(
    dataset: ImageCollection,
    fraction: float,
    *,
    seed: int,
    group_key: str | None = None,
    stratify_key: str | None = None,
) -> tuple[list[int], list[int]]:
    """Image ids of a labelled part with about `fraction` of the images, and of the rest, each in the set's order.

    group_key: field of the image records whose groups stay on one side (tiles of one picture, frames of one video).
    Image files with the same content also stay together.  stratify_key: field whose values (the majority in a group)
    are drawn in proportion, each with at least one group.  At least one image is labelled.  Raises ValueError for a
    fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: expected a share of the images in (0, 1]")
    strata = _groups_by_stratum(dataset, group_key, stratify_key)
    generator = torch.Generator().manual_seed(seed)
    chosen: set[int] = set()
    seen = 0
    for groups in sorted(strata.values(), key=lambda groups: sum(map(len, groups))):
        seen += sum(map(len, groups))
        order = torch.randperm(len(groups), generator=generator).tolist()
        chosen.update(_fill([groups[place] for place in order], fraction * seen - len(chosen)))
    labeled = [image_id for image_id in dataset.image_ids if image_id in chosen]
    return labeled, [image_id for image_id in dataset.image_ids if image_id not in chosen]


def group_count(dataset: ImageCollection, group_key: str | None) -> int:
    """The number of groups that a split keeps whole: values of the field `group_key`, or single images without one.

    Groups that share an image file count as one.
    """
    return len(set(_group_names(dataset, group_key)))


def _group_names(dataset: ImageCollection, group_key: str | None) -> list[str]:
    """The group of each image: its value of the field `group_key`, else its id; copies of a file share a group."""
    names = dataset.image_field(group_key) if group_key else [str(image_id) for image_id in dataset.image_ids]
    paths = [Path(os.path.realpath(record.path)) for record in dataset.records]
    joined: dict[str, str] = {}

    def head(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    def join(one: str, other: str) -> None:
        if head(one) != head(other):
            joined[head(one)] = head(other)

    group_of: dict[Path, str] = {}
    for path, name in zip(paths, names, strict=True):
        join(name, group_of.setdefault(path, name))
    for copy, first in copies(paths).items():
        join(group_of[copy], group_of[first])
    return [head(name) for name in names]


def fold_ids(
    dataset: ImageCollection,
    count: int,
    *,
    seed: int,
    group_key: str | None = None,
    stratify_key: str | None = None,
) -> list[list[int]]:
    """Image ids of `count` disjoint folds of nearly equal size that cover the set, each in the set's order.

    group_key: field whose groups stay in one fold.  stratify_key: field whose values (the majority in a group) spread
    evenly over the folds; by default the rarest class of labelled images.  With fewer groups than `count`, each group
    is a fold.  Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1 fold")
    strata = _groups_by_stratum(dataset, group_key, stratify_key, _rarest_classes(dataset))
    generator = torch.Generator().manual_seed(seed)
    folds: list[set[int]] = [set() for _ in range(min(count, sum(map(len, strata.values()))))]
    for _, groups in sorted(strata.items(), key=lambda item: (sum(map(len, item[1])), item[0])):
        in_stratum = [0] * len(folds)
        order = torch.randperm(len(groups), generator=generator).tolist()
        for group in sorted((groups[place] for place in order), key=len, reverse=True):
            place = min(range(len(folds)), key=lambda n: (in_stratum[n], len(folds[n])))
            folds[place].update(group)
            in_stratum[place] += len(group)
    return [[image_id for image_id in dataset.image_ids if image_id in fold] for fold in folds]


def _rarest_classes(dataset: ImageCollection) -> list[str]:
    """For each image, its class that the fewest images have; "" for an image without labels."""
    if not isinstance(dataset, LabeledImages):
        return [""] * len(dataset)
    classes = [set(dataset.mask_layers(index).labels) for index in range(len(dataset))]
    images = Counter(label for of_image in classes for label in of_image)
    return [str(min(of_image, key=lambda label: (images[label], label), default="")) for of_image in classes]


def _groups_by_stratum(
    dataset: ImageCollection, group_key: str | None, stratify_key: str | None, otherwise: Sequence[str] | None = None
) -> dict[str, list[list[int]]]:
    """Maps each stratum to its groups of image ids; otherwise: the strata by image if there is no key, else one."""
    names = _group_names(dataset, group_key)
    kinds = dataset.image_field(stratify_key) if stratify_key else otherwise or [""] * len(names)
    members: dict[str, list[int]] = defaultdict(list)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for image_id, name, kind in zip(dataset.image_ids, names, kinds, strict=True):
        members[name].append(image_id)
        votes[name][kind] += 1
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for name, image_ids in members.items():
        strata[votes[name].most_common(1)[0][0]].append(image_ids)
    return strata


def _fill(groups: list[list[int]], target: float) -> list[int]:
    """Images of groups added in turn while they bring the number closer to the target; at least one group."""
    taken: list[int] = []
    for group in groups:
        if abs(len(taken) + len(group) - target) < abs(len(taken) - target):
            taken.extend(group)
    return taken or min(groups, key=lambda group: len(group))


def kept_split(path: Path, dataset: ImageCollection, draw: Callable[[], Sequence[int]]) -> list[int]:
    """The image ids of a split file. If it is missing, `draw` gives the ids and they are written first.

    All processes and later runs get the same ids.  If several processes draw at once, the first one to finish writes
    the file and all read it.  Raises DataError if the file was edited, or if its ids refer to other image files in
    `dataset` than when they were drawn.
    """
    if not path.exists():
        write_split(path, draw(), dataset=dataset, keep=True)
    return read_split(path, dataset=dataset)


def write_split(
    path: Path, ids: Sequence[int], *, dataset: ImageCollection | None = None, source: str = "", keep: bool = False
) -> None:
    """Writes image ids to a text file, one per line, below a comment with their sha256.

    dataset: the set of the ids; adds the sha256 of their file names.  source: origin of the ids, stored as a comment;
    by default the name of the set.  The write is atomic.  keep: do not replace an existing file.
    """
    path = Path(path)
    source = source or (dataset.name if dataset is not None else "")
    lines = [f"{_HASH_PREFIX}{_ids_hash(ids)}", f"# {len(ids)} image ids" + f" of {source}" * bool(source)]
    if dataset is not None:
        lines.append(f"{_NAMES_PREFIX}{_names_hash(dataset, ids)}")
    lines += [str(image_id) for image_id in ids]
    write_text(path, "\n".join(lines) + "\n", keep=keep)


def read_split(path: Path, *, dataset: ImageCollection | None = None) -> list[int]:
    """The image ids of a file from `write_split`.  Raises DataError if it is missing, malformed or was edited.

    dataset: the set of the ids; DataError also if it lacks an id, or has another file under one.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError([Problem(path, "", "the split file does not exist", "a file of image ids", "Draw it again.")])
    ids: list[int] = []
    stated = names = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith(_HASH_PREFIX):
            stated = line.removeprefix(_HASH_PREFIX).strip()
        elif line.startswith(_NAMES_PREFIX):
            names = line.removeprefix(_NAMES_PREFIX).strip()
        elif line.strip() and not line.startswith("#"):
            try:
                ids.append(int(line))
            except ValueError:
                cure = "Draw the split again."
                raise DataError([Problem(path, f"line {number}", f"{line!r}", "an image id", cure)]) from None
    if stated != _ids_hash(ids):
        found = f"the {len(ids)} ids have the sha256 {_ids_hash(ids)[:12]}..."
        expected = f"{stated[:12]}..., as its first line states" if stated else "a first line that states their sha256"
        cure = "The file was edited: restore it, or write the ids with write_split."
        raise DataError([Problem(path, "", found, expected, cure)])
    if dataset is not None:
        _check_names(path, ids, names, dataset)
    return ids


def _check_names(path: Path, ids: Sequence[int], stated: str, dataset: ImageCollection) -> None:
    place = dataset.name or str(dataset.images_dir)
    cure = "Restore the images, or start again in another folder: results would not be comparable."
    unknown = sorted(set(ids) - set(dataset.image_ids))
    if unknown:
        found = f"{len(unknown)} ids that {place} does not have ({named(unknown)})"
        raise DataError([Problem(path, "", found, f"ids of its {len(dataset)} images", cure)])
    if stated and stated != _names_hash(dataset, ids):
        found = f"under its ids, {place} has other image files than when they were drawn"
        raise DataError([Problem(path, "", found, "the same files", cure)])


def _ids_hash(ids: Sequence[int]) -> str:
    return _hash([str(image_id) for image_id in ids])


def _names_hash(dataset: ImageCollection, ids: Sequence[int]) -> str:
    names = dict(zip(dataset.image_ids, dataset.file_names, strict=True))
    return _hash([names[image_id] for image_id in ids])


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256(encoded("\n".join(lines))).hexdigest()
