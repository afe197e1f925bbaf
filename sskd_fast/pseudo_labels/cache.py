"""Predictions of a whole image set, cached on disk so that interrupted labelling resumes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sskd_fast.files import write_json
from sskd_fast.journal import Journal, parse_record
from sskd_fast.mask_matching import by_image

logger = logging.getLogger(__name__)


def cache_key(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """A hash (64 hex digits) of the teacher's weights and the settings of the labelling."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in sorted(weights):
        weight = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def label_images(
    predict: Callable[[Sequence[int]], list[dict[str, Any]]],
    image_ids: Sequence[int],
    path: Path,
    *,
    key: str,
    chunk: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """The results of `predict` on all images, in the order of `image_ids`, cached in the file `path`.

    predict: maps at most `chunk` image ids to the COCO results of those images, in any order.
    key: hash of all that the results depend on (see cache_key).
    progress: called after each chunk with (images done, images in total).

    If `path` is finished with the same key and ids, it is read instead.  Until then, each image is one line of
    `<path>.partial`.  A later call with the same key resumes from it and drops a line cut off by a crash.  The finished
    file replaces it atomically.  Results under another key or of other images are never used.
    Raises ValueError if `predict` returns a result on an image that was not requested.
    """
    ids = [int(image_id) for image_id in image_ids]
    partial = path.with_name(path.name + ".partial")
    if path.exists():
        finished = _finished(path)
        if finished is not None and finished["key"] == key and finished["image_ids"] == ids:
            partial.unlink(missing_ok=True)  # left by a process killed right after it finished
            return list(finished["results"])
        logger.info("%s was made by another teacher, with other settings or of other images: labelling again", path)
    with Journal(partial, key) as journal:
        done = {int(record["image_id"]): record["results"] for record in journal.records}
        _predict_missing(predict, ids, journal, done, chunk, progress)
        results = [result for image_id in ids for result in done[image_id]]
        write_json(path, {"key": key, "image_ids": ids, "results": results})
        journal.remove()
    return results


def read_labels(path: Path) -> list[dict[str, Any]]:
    """The COCO results list in a finished file of label_images.  Raises ValueError for any other file."""
    finished = _finished(path)
    if finished is None:
        raise ValueError(f"{path}: expected a JSON object with 'key', 'image_ids' and 'results' from label_images")
    return list(finished["results"])


def _predict_missing(
    predict: Callable[[Sequence[int]], list[dict[str, Any]]],
    ids: list[int],
    journal: Journal,
    done: dict[int, list[dict[str, Any]]],
    chunk: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Predicts the missing images and adds them to `done` and the journal.

    A crash loses at most about a second of records and one chunk.
    """
    missing = [image_id for image_id in ids if image_id not in done]
    for start in range(0, len(missing), chunk):
        asked = missing[start : start + chunk]
        found = by_image(predict(asked))
        foreign = set(found) - set(asked)
        if foreign:
            raise ValueError(f"predict returned a result on image {min(foreign)}, asked for {asked}")
        done.update({image_id: found.get(image_id, []) for image_id in asked})
        journal.append({"image_id": image_id, "results": done[image_id]} for image_id in asked)
        if progress is not None:
            progress(len(ids) - len(missing) + start + len(asked), len(ids))


def _finished(path: Path) -> dict[str, Any] | None:
    record = parse_record(path.read_bytes())
    return record if record is not None and {"key", "image_ids", "results"} <= set(record) else None
