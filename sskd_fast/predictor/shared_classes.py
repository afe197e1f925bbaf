"""Matching of a model's classes to those of labels by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sskd_fast.data.errors import named
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.predictor.predictor import Predictor


@dataclass(frozen=True)
class SharedClasses:
    """Classes matched by name.  ids: category id of the model -> category id of the labels, for shared classes.

    model_only, labels_only: class names that the other side lacks.
    """

    ids: dict[int, int]
    model_only: tuple[str, ...]
    labels_only: tuple[str, ...]

    @property
    def differ(self) -> bool:
        """True if one side has a class that the other lacks."""
        return bool(self.model_only or self.labels_only)


def shared_classes(predictor: Predictor, source: LabeledImages) -> SharedClasses:
    """Matches the classes of a model and of labels by name, regardless of order and ids."""
    theirs = dict(zip(source.class_names, source.category_ids, strict=True))
    ours = dict(zip(predictor.class_names, predictor.category_ids, strict=True))
    return SharedClasses(
        {ours[name]: theirs[name] for name in ours if name in theirs},
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
    )


def difference_text(
    labels: str | Path, source: LabeledImages, model: str | Path, predictor: Predictor, classes: SharedClasses
) -> str:
    """One line on the classes of labels and of a model, and those that only one has; the caller adds the cure.

    labels, model: the names of their files.
    """
    labels_only, model_only = (named(names, 20) or "none" for names in (classes.labels_only, classes.model_only))
    return (
        f"{labels}: has the classes {named(source.class_names, 20)}; the model {model} has "
        f"{named(predictor.class_names, 20)}; only the labels have {labels_only}, only the model has {model_only}"
    )
