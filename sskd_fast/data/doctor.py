"""Checks of a whole data set before training: every finding at once, with its file, its id and its cure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.formats.coco import read_coco
from sskd_fast.data.formats.table import Reader
from sskd_fast.data.id_map_checks import check_id_maps
from sskd_fast.data.id_maps import IdMapImages
from sskd_fast.data.mask_checks import check_annotations
from sskd_fast.data.pixels import MISSING_IMAGE, in_threads
from sskd_fast.data.record_checks import (
    CheckedFile,
    check_categories,
    check_class_names,
    check_image_files,
    check_image_records,
)
from sskd_fast.data.source import ImageCollection


def check_dataset(
    annotations: Path,
    images: Path,
    *,
    val: Path | None = None,
    val_images: Path | None = None,
    unlabeled: Path | None = None,
    class_names: Sequence[str] | None = None,
    group_key: str | None = None,
    decode: bool = True,
    read: Reader = read_coco,
) -> list[str]:
    """Checks a data set as training will use it; returns warnings, raises DataError with all problems otherwise.

    annotations, images: the training set, its labels and its image folder.  val, val_images: the validation set
    (val_images: by default `images`).  unlabeled: a folder of plain images.  class_names: classes that must exist.
    group_key: field of the image records that no value of may occur in both sets.  decode: read every image whole,
    which finds damaged files; False reads the headers only.  read: from labels to a COCO instances dict, see
    formats.table.READERS.

    Problems: malformed JSON or records; repeated image or category ids; missing, unreadable or differently sized
    images; annotations that name an unknown image or category; boxes without masks, polygons under 3 points, RLE of
    another size; no instance at all; validation images or groups that are in the training set too; training classes
    that validation does not list.  Warnings: gaps in the category ids (they are mapped), classes without instances,
    masks without a pixel (they are dropped), repeated annotation ids, files listed twice.
    """
    findings = Findings()
    train = _check_file(Path(annotations), Path(images), findings, class_names, decode, read)
    validation = None
    if val is not None:
        wanted = class_names or train.class_names
        before = len(findings.problems)
        validation = _check_file(Path(val), Path(val_images or images), findings, wanted, decode, read)
        if Path(val_images or images) == Path(images):
            findings.problems[before:] = [_perhaps_elsewhere(problem) for problem in findings.problems[before:]]
        _check_validation_classes(train, validation, findings)
    return _check_together(train, validation, findings, unlabeled, group_key, decode)


def check_folders(
    train: IdMapImages,
    val: IdMapImages,
    *,
    unlabeled: Path | None = None,
    group_key: str | None = None,
    decode: bool = True,
) -> list[str]:
    """`check_dataset` for sets with an annotation picture beside each image, as Cityscapes and ADE20K come."""
    findings = Findings()
    checked, validation = check_id_maps(train, findings, decode), check_id_maps(val, findings, decode)
    return _check_together(checked, validation, findings, unlabeled, group_key, decode)


def check_images(folder: Path, *, decode: bool = True) -> None:
    """Checks a folder of plain images by itself; raises DataError with every one that cannot be read."""
    findings = Findings()
    _check_unlabeled(folder, findings, decode)
    if findings.problems:
        raise DataError(findings.problems)


def _check_together(
    train: CheckedFile,
    validation: CheckedFile | None,
    findings: Findings,
    unlabeled: Path | None,
    group_key: str | None,
    decode: bool,
) -> list[str]:
    """What concerns several sets; returns the warnings, raises DataError where anything was found."""
    if validation is not None:
        _check_overlap(train, validation, findings)
        if group_key is not None:
            _check_groups(train, validation, group_key, findings)
    if unlabeled is not None:
        _check_unlabeled(Path(unlabeled), findings, decode)
    if findings.problems:
        raise DataError(findings.problems, findings.warnings)
    return findings.warnings


def _check_file(
    file: Path, images: Path, findings: Findings, class_names: Sequence[str] | None, decode: bool, read: Reader
) -> CheckedFile:
    """All checks of the labels of one set and its images."""
    checked = CheckedFile(file)
    if file.exists() and not images.is_dir():
        findings.add(images, "", "the folder does not exist", f"the images of {file}", "Correct its path.")
        return checked
    try:
        content = read(file, images, tuple(class_names or ()))
    except DataError as error:
        findings.problems.extend(error.problems)
        return checked
    own = Findings(warnings=findings.warnings)
    own.warnings.extend(content.get("warnings", ()))
    categories = check_categories(file, content["categories"], own)
    checked.class_names = list(categories.values())
    check_class_names(file, checked.class_names, class_names, own)
    check_image_records(file, images, content["images"], checked, own)
    check_image_files(checked, own, decode)
    check_annotations(checked, content["annotations"], categories, own)
    findings.problems.extend(own.problems)
    return checked


def _perhaps_elsewhere(problem: Problem) -> Problem:
    """Of an image that is not there: the validation images may have a folder of their own, which was not given."""
    if problem.found != MISSING_IMAGE:
        return problem
    cure = "If the validation images have a folder of their own, name it: --val-images DIR (data.val_images)."
    return replace(problem, cure=f"{cure} {problem.cure}")


def _check_validation_classes(train: CheckedFile, validation: CheckedFile, findings: Findings) -> None:
    unknown = [name for name in validation.class_names if name not in train.class_names]
    if unknown and train.class_names:
        findings.warnings.append(
            f"{validation.file}: {len(unknown)} classes are not in {train.file} and are left out: {named(unknown)}."
        )


def _check_overlap(train: CheckedFile, validation: CheckedFile, findings: Findings) -> None:
    """Validation images that are training images: files of the same content, whatever their ids and names."""
    twins = same_content(train.paths.values(), validation.paths.values())
    cure = "Take it out of one of them: validation figures would be too good."
    for image_id, record in validation.records.items():
        path = validation.paths[image_id]
        if path in twins:
            found = f"{record['file_name']} has the same content as the training image {twins[path]}"
            findings.add(validation.file, f"image {image_id}", found, "no training image in the validation set", cure)


def same_content(first: Iterable[Path], second: Iterable[Path]) -> dict[Path, Path]:
    """Files of `second` with the bytes of a file of `first` -> that file; only files of equal size are read."""
    of_size: dict[int, list[Path]] = defaultdict(list)
    for path in first:
        if path.is_file():
            of_size[path.stat().st_size].append(path)
    candidates = [path for path in second if path.is_file() and path.stat().st_size in of_size]
    sizes = {path.stat().st_size for path in candidates}
    twins = [path for size in sizes for path in of_size[size]]
    by_hash = dict(zip(in_threads(_content_hash, twins), twins, strict=True))
    hashes = zip(candidates, in_threads(_content_hash, candidates), strict=True)
    return {path: by_hash[digest] for path, digest in hashes if digest in by_hash}


def without_known(plain: ImageCollection, known: Iterable[ImageCollection], warnings: list[str]) -> ImageCollection:
    """The images of `plain` that are in no set of `known`, by content; a warning says which ones are left out.

    Raises DataError if none remains.
    """
    twins = same_content(
        [record.path for source in known for record in source.records], [record.path for record in plain.records]
    )
    if twins:
        warnings.append(
            f"{plain.images_dir}: {len(twins)} of {len(plain)} images are labelled or validation images too "
            f"({named([path.name for path in twins])}): they are left out of the unlabelled set."
        )
    kept = plain.subset(record.image_id for record in plain.records if record.path not in twins)
    if not len(kept):
        cure = "Give a folder with other images, or hide labels with --labeled-fraction."
        found = f"all {len(plain)} images are labelled or validation images"
        raise DataError([Problem(plain.images_dir, "", found, "images without labels", cure)])
    return kept


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_groups(train: CheckedFile, validation: CheckedFile, key: str, findings: Findings) -> None:
    first, second = (_group_members(checked, key) for checked in (train, validation))
    for value in sorted(first.keys() & second.keys()):
        found = f"images {named(second[value])} belong to it, and training images {named(first[value])} too"
        cure = "Put the whole group on one side: its images show the same scene."
        findings.add(validation.file, f"{key} {value}", found, "each group in one set only", cure)


def _group_members(checked: CheckedFile, key: str) -> Mapping[str, list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for image_id, record in checked.records.items():
        if key in record:
            members[str(record[key])].append(image_id)
    return members


def _check_unlabeled(folder: Path, findings: Findings, decode: bool) -> None:
    try:
        plain = ImageFolder(folder)
    except DataError as error:
        findings.problems.extend(error.problems)
        return
    checked = CheckedFile(folder)
    checked.paths = {record.image_id: record.path for record in plain.records}
    checked.records = {record.image_id: {"file_name": record.file_name} for record in plain.records}
    check_image_files(checked, findings, decode)
