"""What became of a teacher's predictions on the unlabelled images: kept as labels, unsure, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["kept", "unsure", "refused", "doubled"]
FATES: tuple[Fate, ...] = ("kept", "unsure", "refused", "doubled")
BINS = 20


@dataclass(frozen=True)
class Choice:
    """A prediction and its fate.

    kept: a label.  unsure: a region that is neither object nor background in training.  refused: its score is too low.
    doubled: its score is high enough, but it overlaps a better one or is beyond the limit of an image.
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
    """The fate of every raw prediction of a teacher, in their order.

    raw: all predictions, COCO results.  labels: those of them that training reads, unsure ones with "iscrowd": 1.
    names: category id -> class name.  thresholds: class name -> the score from which a label is kept.

    Raises ValueError if a label is not among the predictions, or if a class has no threshold.
    """
    chosen = Counter(map(_identity, labels))
    unsure = {_identity(label) for label in labels if label.get("iscrowd", 0)}
    choices = []
    for result in raw:
        name = names.get(int(result["category_id"]), f"category {result['category_id']}")
        if name not in thresholds:
            raise ValueError(f"class {name!r} has no threshold; thresholds are known for {', '.join(thresholds)}")
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


def counts_by_class(choices: Sequence[Choice]) -> dict[str, Counter[Fate]]:
    """Class name -> how many predictions had each fate; the class with most predictions first."""
    counts: dict[str, Counter[Fate]] = {}
    for choice in choices:
        counts.setdefault(choice.name, Counter())[choice.fate] += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1].total()))


@dataclass(frozen=True)
class ScoreHistogram:
    """The scores of a class in BINS equal bins of [0, 1]: counts of the kept, of kept and unsure, and of all."""

    name: str
    threshold: float
    kept: list[int]
    read: list[int]
    all: list[int]


def score_histograms(choices: Sequence[Choice]) -> Iterator[ScoreHistogram]:
    """A histogram for each class that has predictions, in the order of `counts_by_class`."""
    for name in counts_by_class(choices):
        own = [choice for choice in choices if choice.name == name]

        def bins(*fates: Fate, own: Sequence[Choice] = own) -> list[int]:
            counts = Counter(min(int(choice.score * BINS), BINS - 1) for choice in own if choice.fate in fates)
            return [counts[place] for place in range(BINS)]

        yield ScoreHistogram(name, own[0].threshold, bins("kept"), bins("kept", "unsure"), bins(*FATES))
