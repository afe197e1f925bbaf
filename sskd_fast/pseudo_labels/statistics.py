"""Statistics of pseudo-labels: counts by class, and precision and recall if the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sskd_fast.mask_matching import by_image, match_results

NEARLY_ALL_EMPTY = 0.9


@dataclass(frozen=True)
class LabelStatistics:
    """Counts over a set of pseudo-labels; the report reads its dataclasses.asdict.

    images, labels: their numbers.  labels_per_image: the mean.  images_with: element i counts the images with i labels.
    by_class: labels by class name.  empty_share: share of images without labels.  mean_score: 0 without labels.
    thresholds: score thresholds by class name, if given.
    The rest compares with hidden ground truth at IoU 0.5, in [0, 1]; None without it.  precision, recall: labels with
    the right mask and class.  class_accuracy: share with the right class among labels with the right mask.  mean_iou:
    mean IoU of those masks.
    warnings: sentences for the user, each with a cure.
    """

    images: int
    labels: int
    labels_per_image: float
    images_with: list[int]
    by_class: dict[str, int]
    empty_share: float
    mean_score: float
    thresholds: dict[str, float] = field(default_factory=dict)
    precision: float | None = None
    recall: float | None = None
    class_accuracy: float | None = None
    mean_iou: float | None = None
    warnings: list[str] = field(default_factory=list)


def label_statistics(
    results: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    categories: Mapping[int, str],
    hidden_truth: dict[str, Any] | None = None,
    *,
    thresholds: Mapping[int, float] | None = None,
) -> LabelStatistics:
    """Statistics of the pseudo-labels `results` over the images `image_ids`.

    categories: COCO category id -> class name.
    hidden_truth: a COCO instances dict of these images, if known; training never sees it.
    thresholds: by category id, recorded by class name.

    Raises ValueError if image_ids is empty, or for a label on another image or of another category.
    """
    return statistics_by_image(by_image(results).items(), image_ids, categories, hidden_truth, thresholds=thresholds)


def statistics_by_image(
    labels: Iterable[tuple[int, Sequence[dict[str, Any]]]],
    image_ids: Sequence[int],
    categories: Mapping[int, str],
    hidden_truth: dict[str, Any] | None = None,
    *,
    thresholds: Mapping[int, float] | None = None,
) -> LabelStatistics:
    """`label_statistics` from (image id, pseudo-labels) pairs, one image at a time; empty images are optional."""
    if not image_ids:
        raise ValueError("image_ids is empty: there is no unlabelled image to count labels on")
    known, images_with = set(image_ids), Counter[int]()
    by_class = {name: 0 for name in categories.values()}
    score, truth = 0.0, None if hidden_truth is None else _Truth(hidden_truth, known)
    for image_id, results in labels:
        if image_id not in known:
            raise ValueError(f"a label is on image {image_id}, which is not among the {len(known)} given")
        for result in results:
            if result["category_id"] not in categories:
                raise ValueError(f"a label has category {result['category_id']}, expected one of {sorted(categories)}")
            by_class[categories[int(result["category_id"])]] += 1
            score += float(result["score"])
        images_with[len(results)] += 1
        if truth is not None:
            truth.add(image_id, results)
    images_with[0] += len(known) - images_with.total()
    count, empty_share = sum(by_class.values()), images_with[0] / len(known)
    return LabelStatistics(
        images=len(known),
        labels=count,
        labels_per_image=count / len(known),
        images_with=[images_with[number] for number in range(max(n for n in images_with if images_with[n]) + 1)],
        by_class=by_class,
        empty_share=empty_share,
        mean_score=score / max(1, count),
        thresholds={categories[category]: score for category, score in (thresholds or {}).items()},
        warnings=_warnings(count, len(known), empty_share, by_class),
        **({} if truth is None else truth.shares()),
    )


class _Truth:
    """Comparison of labels with hidden ground truth at IoU 0.5, one image at a time."""

    def __init__(self, truth: dict[str, Any], image_ids: set[int]) -> None:
        self.wanted = sum(a["image_id"] in image_ids and not a.get("iscrowd", 0) for a in truth["annotations"])
        self._annotations, self._images = by_image(truth["annotations"]), {r["id"]: r for r in truth["images"]}
        self.labels = self.right = self.same_class = self.found = 0
        self.iou = 0.0

    def add(self, image_id: int, results: Sequence[dict[str, Any]]) -> None:
        """Counts the labels of an image.  Raises ValueError if it is not in the ground truth."""
        images = [self._images[image_id]] if image_id in self._images else []
        own = {"images": images, "annotations": self._annotations.get(image_id, [])}
        right = [m for m in match_results(results, own, iou=0.5, class_aware=True) if not m.ignored]
        self.labels, self.right = self.labels + len(right), self.right + sum(m.annotation is not None for m in right)
        for match in match_results(results, own, iou=0.5, class_aware=False):
            if match.annotation is not None:
                self.found, self.iou = self.found + 1, self.iou + match.iou
                self.same_class += match.annotation["category_id"] == match.result["category_id"]

    def shares(self) -> dict[str, float | None]:
        """Precision, recall, class accuracy and mean IoU; None if the denominator is 0."""
        return {
            "precision": self.right / self.labels if self.labels else None,
            "recall": self.right / self.wanted if self.wanted else None,
            "class_accuracy": self.same_class / self.found if self.found else None,
            "mean_iou": self.iou / self.found if self.found else None,
        }


def _warnings(labels: int, images: int, empty_share: float, by_class: Mapping[str, int]) -> list[str]:
    if not labels:
        return [
            f"No pseudo-label on any of {images} unlabelled images: distillation would learn only from the labelled "
            "images. Lower the score thresholds (or target_precision), train the teacher longer, or check that the "
            "unlabelled images show the same classes as the labelled ones."
        ]
    warnings = []
    if empty_share > NEARLY_ALL_EMPTY:
        warnings.append(
            f"{100 * empty_share:.0f} % of {images} unlabelled images have no pseudo-label ({labels} labels in total). "
            "Lower the score thresholds (or target_precision), or check that these images show the labelled classes."
        )
    absent = [name for name, count in by_class.items() if not count]
    if absent:
        warnings.append(
            f"No pseudo-label of {len(absent)} of {len(by_class)} classes ({', '.join(absent[:5])}): the student sees "
            "them on labelled images only. Label more images of them or lower their thresholds."
        )
    return warnings
