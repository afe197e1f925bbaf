"""Checks of a whole data set before training, which report all findings at once with file, id and cure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sskd_fast.data.copies import same_content, same_pixels
from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.formats.coco import read_coco
from sskd_fast.data.formats.table import Reader
from sskd_fast.data.id_map_checks import check_id_maps
from sskd_fast.data.id_maps import IdMapImages
from sskd_fast.data.label_set import LabelSet, check_paths
from sskd_fast.data.pixels import MISSING_IMAGE, pixel_limit
from sskd_fast.data.record_checks import CheckedFile, check_image_files
from sskd_fast.data.remembered import check_key, remembered
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
    confine: bool = False,
) -> list[str]:
    """Checks a data set as training will use it.  Returns warnings, or raises DataError with all problems.

    annotations, images: the training set, its labels and its image folder.  val, val_images: the validation set
    (val_images: by default `images`).  unlabeled: a folder of plain images.  class_names: classes that must exist.
    group_key: field of the image records whose values must not occur in both sets.  decode: decode all images, which
    finds damaged files; False reads only the headers.  read: reads labels into a COCO instances dict, see
    formats.table.READERS.  confine: reject file names that point outside the image folder.

    Problems in files: missing paths, reported before anything is read; malformed JSON or records; repeated image or
    category ids; unknown images or categories in annotations.  Problems in images: missing files, reported before any
    image is decoded; unreadable or differently sized images.  Problems in masks: boxes without masks, polygons under
    3 points, RLE of another size; no instance at all.  A quarter of the masks or more outside their images, and masks
    that fit the stated boxes if read in another way, are problems too.  Problems in validation: images (by bytes or
    pixels) or groups that are also in the training set; training classes that it does not list.
    Warnings on classes and images: gaps in the category ids (mapped), classes without instances, mostly images
    without objects, image files found under another spelling.  Warnings on objects: masks without a pixel (they are
    dropped), duplicate objects and images, stated areas and boxes far from the masks, repeated annotation ids.
    Passed checks with `decode` are remembered (see `check_key`).
    """
    val_images = Path(val_images or images)
    sets = [LabelSet(Path(annotations), Path(images))] + ([LabelSet(Path(val), val_images)] if val is not None else [])
    plain = None if unlabeled is None else Path(unlabeled)
    check_paths(sets, plain)
    findings, classes = Findings(), class_names
    for part in sets:
        part.read(classes, read, confine, findings.warnings)
        classes = classes or part.checked.class_names
    train, validation = sets[0].checked, sets[1].checked if len(sets) > 1 else None
    if validation is not None:
        if val_images == Path(images):
            sets[1].problems[:] = [_perhaps_elsewhere(problem) for problem in sets[1].problems]
        _check_validation_classes(train, validation, findings)

    def work() -> list[str]:
        missing = any(problem.found.startswith(MISSING_IMAGE) for part in sets for problem in part.problems)
        for part in sets:
            findings.problems += part.examined(findings.warnings, decode and not missing)
        findings.problems.sort(key=lambda p: (not p.found.startswith(MISSING_IMAGE), p.file in (annotations, val)))
        return _check_together(train, validation, findings, plain, group_key, decode and not missing)

    if not decode or any(part.problems for part in sets):
        return work()
    files = [record.path for part in sets for record in part.checked.images.values()]
    files += [record.path for record in ImageFolder(plain).records] if plain is not None else []
    contents = [vars(part.checked.coco) for part in sets if part.checked.coco is not None]
    options = [class_names, group_key, pixel_limit(), findings.warnings]
    return remembered(check_key(contents, files, options), work)


def check_folders(
    train: IdMapImages,
    val: IdMapImages,
    *,
    unlabeled: Path | None = None,
    group_key: str | None = None,
    decode: bool = True,
) -> list[str]:
    """`check_dataset` for sets with an annotation picture for each image, such as Cityscapes and ADE20K."""
    findings = Findings()
    checked, validation = check_id_maps(train, findings, decode), check_id_maps(val, findings, decode)
    return _check_together(checked, validation, findings, unlabeled, group_key, decode)


def check_images(folder: Path, *, decode: bool = True) -> None:
    """Checks a folder of plain images on its own.  Raises DataError with all unreadable ones."""
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
    """Checks several sets against each other.  Returns the warnings, or raises DataError if there are problems."""
    if validation is not None:
        _check_overlap(train, validation, findings)
        if group_key is not None:
            _check_groups(train, validation, group_key, findings)
    if unlabeled is not None:
        plain = _check_unlabeled(Path(unlabeled), findings, decode)
        _warn_of_resaved(plain, [train] if validation is None else [train, validation], findings)
    if findings.problems:
        raise DataError(findings.problems, findings.warnings)
    return findings.warnings


def _perhaps_elsewhere(problem: Problem) -> Problem:
    """Adds a hint to the problem of a missing image: validation images may have their own folder, not given."""
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
    """Finds validation images that are also training images, by bytes or pixels, under any ids and names."""
    twins = same_content(*([record.path for record in part.images.values()] for part in (train, validation)))
    resaved = same_pixels(train.pixels, validation.pixels)
    cure = "Take it out of one of them: validation figures would be too good."
    for image_id, record in validation.images.items():
        if record.path in twins:
            found = f"{record.file_name} has the same content as the training image {twins[record.path]}"
        elif record.path in resaved:
            found = f"{record.file_name} shows the pixels of the training image {resaved[record.path]}, in other bytes"
        else:
            continue
        findings.add(validation.file, f"image {image_id}", found, "no training image in the validation set", cure)


def without_known(plain: ImageCollection, known: Iterable[ImageCollection], warnings: list[str]) -> ImageCollection:
    """The images of `plain` that no set of `known` has, compared by content; a warning names those left out.

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


def _check_groups(train: CheckedFile, validation: CheckedFile, key: str, findings: Findings) -> None:
    first, second = (_group_members(checked, key) for checked in (train, validation))
    for value in sorted(first.keys() & second.keys()):
        found = f"images {named(second[value])} belong to it, and training images {named(first[value])} too"
        cure = "Put the whole group on one side: its images show the same scene."
        findings.add(validation.file, f"{key} {value}", found, "each group in one set only", cure)


def _group_members(checked: CheckedFile, key: str) -> Mapping[str, list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for image_id, record in checked.images.items():
        if key in record.extra:
            members[record.extra[key]].append(image_id)
    return members


def _warn_of_resaved(plain: CheckedFile, known: Sequence[CheckedFile], findings: Findings) -> None:
    """Warns of unlabelled images with the pixels but not the bytes of known ones; see `without_known` for bytes."""
    pixels = {path: digest for part in known for path, digest in part.pixels.items()}
    copies = same_content(pixels, plain.pixels)
    resaved = {path: first for path, first in same_pixels(pixels, plain.pixels).items() if path not in copies}
    if resaved:
        copy, first = next(iter(resaved.items()))
        findings.warnings.append(
            f"{plain.file}: {len(resaved)} of {len(plain.images)} images show the pixels of labelled or validation "
            f"images in files of other bytes ({copy.name} those of {first}): take them out of the unlabelled set."
        )


def _check_unlabeled(folder: Path, findings: Findings, decode: bool) -> CheckedFile:
    checked = CheckedFile(folder)
    try:
        plain = ImageFolder(folder)
    except DataError as error:
        findings.problems.extend(error.problems)
        return checked
    checked.images = {record.image_id: record for record in plain.records}
    check_image_files(checked, findings, decode)
    return checked
