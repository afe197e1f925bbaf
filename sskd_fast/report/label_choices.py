"""The fate of a teacher's predictions on the unlabelled images: kept as labels, unsure, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["kept", "unsure", "refused", "doubled"]
FATES: tuple[Fate, ...] = ("kept", "unsure", "refused", "doubled")
BINS = 20


@dataclass(frozen=True)
class Choice:
    """A prediction and its fate.

    kept: it is a label.  unsure: training ignores its region.  refused: its score is too low.
    doubled: its score is high enough, but it overlaps a better one or exceeds the limit of labels for an image.
    """

    result: Mapping[str, Any]
    name: str
    threshold: float
    fate: Fate

    @property
    def score(self) -> float:
        """The score of the prediction, in [0, 1]."""
        return float(self.result["score"])


def label_choices(
    raw: Sequence[Mapping[str, Any]],
    labels: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    thresholds: Mapping[str, float],
) -> list[Choice]:
    """The fate of each raw prediction of a teacher, in the order of the predictions.

    raw: all predictions, COCO results.  labels: the predictions that training reads, unsure ones with "iscrowd": 1.
    names: category id -> class name.  thresholds: class name -> lowest score of a label.

    Raises ValueError if a label is not among the predictions, or if a class has no threshold.
    """
    chosen = Counter(map(_identity, labels))
    unsure = {_identity(label) for label in labels if label.get("iscrowd", 0)}
    choices = []
    for result in raw:
        name = names.get(int(result["category_id"]), f"category {result['category_id']}")
        if name not in thresholds:
            raise ValueError(f"class {name!r} has no threshold; the classes with one are {', '.join(thresholds)}")
        key = _identity(result)
        if chosen[key]:
            chosen[key] -= 1
            fate: Fate = "unsure" if key in unsure else "kept"
        else:
            fate = "doubled" if float(result["score"]) >= thresholds[name] else "refused"
        choices.append(Choice(result, name, thresholds[name], fate))
    if chosen.total():
        raise ValueError(f"{chosen.total()} of {len(labels)} labels are not among the {len(raw)} predictions")
    return choices


def _identity(result: Mapping[str, Any]) -> tuple[int, int, float, str]:
    counts = str(result["segmentation"]["counts"])
    return int(result["image_id"]), int(result["category_id"]), float(result["score"]), counts


def by_class(choices: Sequence[Choice]) -> dict[str, list[Choice]]:
    """The predictions by class name; the class with most predictions comes first."""
    groups: dict[str, list[Choice]] = {}
    for choice in choices:
        groups.setdefault(choice.name, []).append(choice)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


@dataclass(frozen=True)
class ScoreHistogram:
    """The scores of a class in BINS equal bins of [0, 1]. kept, read, all: counts of kept, kept or unsure, and all."""

    name: str
    threshold: float
    kept: list[int]
    read: list[int]
    all: list[int]


def score_histogram(name: str, choices: Sequence[Choice]) -> ScoreHistogram:
    """The histogram of the predictions of a class; choices: at least one."""

    def bins(*fates: Fate) -> list[int]:
        counts = Counter(min(int(choice.score * BINS), BINS - 1) for choice in choices if choice.fate in fates)
        return [counts[place] for place in range(BINS)]

    return ScoreHistogram(name, choices[0].threshold, bins("kept"), bins("kept", "unsure"), bins(*FATES))
