"""Checks of a data set whose instances are pixel values of annotation pictures, one for each image."""

from __future__ import annotations

from collections import Counter

from sskd_fast.data.errors import Findings, Problem, named
from sskd_fast.data.id_maps import IdMapImages
from sskd_fast.data.pixels import in_threads
from sskd_fast.data.record_checks import CheckedFile, check_image_files
from sskd_fast.data.source import ImageRecord
from sskd_fast.rle import MaskError


def check_id_maps(source: IdMapImages, findings: Findings, decode: bool) -> CheckedFile:
    """Opens all images and annotation pictures; returns the data that other checks need.

    Problems: missing or damaged images or annotation pictures, or of different sizes; values that the data set does not
    define; no instance at all.  Warnings: classes without instances, annotation pictures without an image.
    decode: decode all images, which finds damaged files; False reads only the headers.
    """
    own = Findings(warnings=findings.warnings)
    checked = CheckedFile(source.labels_dir, class_names=list(source.class_names))
    checked.images = {record.image_id: record for record in source.records}
    check_image_files(checked, own, decode)
    _check_labels(source, own)
    strays = sorted(set(source.labels_dir.glob(source.labels_pattern)) - set(source.label_files.values()))
    if strays:
        named_strays = named([path.name for path in strays])
        own.warnings.append(f"{source.labels_dir}: {len(strays)} annotation pictures have no image: {named_strays}.")
    findings.problems.extend(own.problems)
    return checked


def _check_labels(source: IdMapImages, findings: Findings) -> None:
    """Reads all annotation pictures and counts the instances of each class."""

    def examine(record: ImageRecord) -> Counter[str] | Problem:
        path = source.label_files[record.image_id]
        try:
            layers = source.read_labels(path)
        except MaskError as error:
            item = f"image {record.image_id} ({record.file_name})"
            return Problem(path, item, error.found, error.expected, error.cure)
        return Counter(source.class_names[label] for label in layers.labels[~layers.crowd])

    instances: Counter[str] = Counter()
    for outcome in in_threads(examine, source.records):
        if isinstance(outcome, Problem):
            findings.problems.append(outcome)
        else:
            instances.update(outcome)
    unseen = [name for name in source.class_names if not instances[name]]
    if not instances and not findings.problems:
        cure = "Unpack the annotations of the data set again; the ones of a test split are empty."
        findings.add(source.labels_dir, "", "no instance in any annotation picture", "at least one", cure)
    elif unseen:
        findings.warnings.append(f"{source.labels_dir}: {len(unseen)} classes have no instance: {named(unseen)}.")
