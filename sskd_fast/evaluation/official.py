"""Official evaluations of data sets, in addition to COCO's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sskd_fast.data.cityscapes import Cityscapes
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.evaluation.cityscapes_ap import evaluate_cityscapes, official_evaluation

Results = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Judge:
    """The official evaluation of a data set.

    kind: class of the data set.  figures: maps images of that kind and a COCO results list to figures, among them those
    of OFFICIAL_TITLES.  require: raises ImportError with the cure if a package is missing.
    """

    kind: type[LabeledImages]
    figures: Callable[[Any, Results], dict[str, Any]]
    require: Callable[[], object]


def _cityscapes(source: Cityscapes, results: Results) -> dict[str, Any]:
    label_files = {image_id: source.label_files[image_id] for image_id in source.image_ids}
    return dataclasses.asdict(evaluate_cityscapes(label_files, results))


JUDGES = {"cityscapes": Judge(Cityscapes, _cityscapes, official_evaluation)}


def require_official(source: LabeledImages) -> None:
    """Raises ImportError with the cure if the data set's official evaluation needs a missing package."""
    for judge in _judges(source).values():
        judge.require()


def official_figures(source: LabeledImages, results: Results) -> dict[str, dict[str, Any]]:
    """Figures of a COCO results list by the data set's official evaluation, under its name: ap, ap50, ... in percent.

    Empty for a data set without one.  Raises ImportError like `require_official`.
    """
    return {name: judge.figures(source, results) for name, judge in _judges(source).items()}


def _judges(source: LabeledImages) -> dict[str, Judge]:
    return {name: judge for name, judge in JUDGES.items() if isinstance(source, judge.kind)}
