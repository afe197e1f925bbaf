"""The evaluations that data sets have of their own, beside COCO's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sskd_fast.data.cityscapes import Cityscapes
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.evaluation.cityscapes_ap import evaluate_cityscapes, official_evaluation


def require_official(source: LabeledImages) -> None:
    """Raises ImportError, with the way out, where the data set's own evaluation needs a package that is missing."""
    if isinstance(source, Cityscapes):
        official_evaluation()


def official_figures(source: LabeledImages, results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the data set's own evaluation says of a COCO results list: its name -> its figures, such as ap and ap50 in
    percent; empty for a data set without one.

    Raises ImportError as `require_official` does.
    """
    if isinstance(source, Cityscapes):
        label_files = {image_id: source.label_files[image_id] for image_id in source.image_ids}
        return {"cityscapes": dataclasses.asdict(evaluate_cityscapes(label_files, results))}
    return {}
