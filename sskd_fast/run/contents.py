"""Hashes of a run's inputs: labels, images, and the weights and predictions that its settings name."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection, ImageRecord
from sskd_fast.data.tars import open_file
from sskd_fast.files import encoded
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run.sources import Sources
from sskd_fast.settings import Config

# Files handed to the threads at once: one that waits takes 2 KB of memory.
_AT_ONCE = 1024
Digests = NDArray[np.uint8]


def set_contents(sources: Sources, unlabeled: Digests) -> dict[str, str]:
    """Description -> hash of the image sets and their labels.  unlabeled: the digests of the unlabelled images."""
    found = {
        "labels": of_labels(sources.labeled),
        "labelled images": of_images(sources.labeled),
        "unlabelled images": hash_of(sources.unlabeled.records, unlabeled),
        "validation labels": of_labels(sources.val),
        "validation images": of_images(sources.val),
    }
    return found if sources.hidden is None else found | {"hidden labels": of_labels(sources.hidden)}


def model_contents(kind: str, config: ModelConfig, weights: Path | None) -> dict[str, str]:
    """Description, such as "teacher weights" -> hash of the files that a model starts from."""
    files = {"weights": [weights] if weights else [], "predictions": map(Path, config.foundation.results_files)}
    files["backbone weights"] = [Path(config.backbone_checkpoint)]
    there = {words: [path for path in paths if path.is_file()] for words, paths in files.items()}
    return {f"{kind} {words}": _hash(map(_of_file, paths)) for words, paths in there.items() if paths}


def named_contents(config: Config) -> dict[str, str]:
    """Path -> hash of the files and folders named in the settings, as of the first call."""
    data = config.data.with_absolute_paths()
    models = (config.teacher, config.student)
    names = [data.root, data.labeled, data.images, data.unlabeled, data.val, data.val_images]
    names += [w for w in (config.teacher_weights, config.student_weights) if w != "embedded"]
    names += [model.backbone_checkpoint for model in models]
    names += [name for model in models for name in model.foundation.results_files]
    paths = sorted({Path(name).resolve() for name in names if name})
    return {str(path): _of_path(path) for path in paths if path.exists()}


def of_labels(source: LabeledImages) -> str:
    """A hash of the instances and classes of a set, whatever the layout of its files."""
    return _hash([json.dumps(source.ground_truth(), sort_keys=True)])


def of_images(source: ImageCollection) -> str:
    """A hash of the names and bytes of a set's image files."""
    return hash_of(source.records, digests_of(source))


def digests_of(source: ImageCollection) -> Digests:
    """The SHA-256 digest of each image file: (N, 32)."""
    found = np.empty((len(source), 32), np.uint8)
    for row, digest in enumerate(_of_files(record.path for record in source.records)):
        found[row] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    return found


def hash_of(records: Sequence[ImageRecord], digests: Digests) -> str:
    """A hash of the names of images and of the digests of their files."""
    return _hash(f"{record.file_name} {row.tobytes().hex()}" for record, row in zip(records, digests, strict=True))


@cache
def _of_path(path: Path) -> str:
    """A hash of a file, or of the names and bytes of all files of a folder."""
    if path.is_file():
        return _of_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _hash(f"{file.relative_to(path)} {digest}" for file, digest in zip(files, _of_files(files), strict=True))


def _of_files(paths: Iterable[Path]) -> Iterator[str]:
    """Hashes of files in their order, by threads."""
    rest = iter(paths)
    with ThreadPoolExecutor() as threads:
        while some := list(itertools.islice(rest, _AT_ONCE)):
            yield from threads.map(_of_file, some)


def _of_file(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(encoded(f"{line}\n"))
    return digest.hexdigest()[:16]
