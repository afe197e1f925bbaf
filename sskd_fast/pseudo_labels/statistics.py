"""What a set of pseudo-labels is worth: how many, of which classes, and how right where the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sskd_fast.mask_matching import match_results

NEARLY_ALL_EMPTY = 0.9


@dataclass(frozen=True)
class LabelStatistics:
    """Counts over a set of pseudo-labels; dataclasses.asdict gives what the report reads.

    images, labels: how many.  labels_per_image: the mean.  images_with: element i counts the images with i labels.
    by_class: labels by class name.  empty_share: share of images without a label.  mean_score: 0 without labels.
    thresholds: score thresholds by class name, where given.
    Against hidden ground truth (None where it is not given), at IoU 0.5, shares in [0, 1]: precision and recall of
    labels right in mask and class; class_accuracy, the share with the right class among the labels whose mask is right;
    mean_iou, the mean IoU of those masks.
    warnings: sentences for the user, each with a way out.
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
    hidden_truth: a COCO instances dict of these images, where known; training never sees it.
    thresholds: by category id, recorded by class name.

    Raises ValueError if image_ids is empty, or if a label is on an image or of a category that is not given.
    """
    if not image_ids:
        raise ValueError("image_ids is empty: there is no unlabelled image to count labels on")
    counts = Counter({int(image_id): 0 for image_id in image_ids})
    by_class = {name: 0 for name in categories.values()}
    for result in results:
        if result["image_id"] not in counts:
            raise ValueError(f"a label is on image {result['image_id']}, which is not among the {len(counts)} given")
        if result["category_id"] not in categories:
            raise ValueError(f"a label has category {result['category_id']}, expected one of {sorted(categories)}")
        counts[int(result["image_id"])] += 1
        by_class[categories[int(result["category_id"])]] += 1
    images_with = Counter(counts.values())
    empty_share = images_with[0] / len(counts)
    return LabelStatistics(
        images=len(counts),
        labels=len(results),
        labels_per_image=len(results) / len(counts),
        images_with=[images_with[number] for number in range(max(images_with) + 1)],
        by_class=by_class,
        empty_share=empty_share,
        mean_score=sum(float(r["score"]) for r in results) / max(1, len(results)),
        thresholds={categories[category]: score for category, score in (thresholds or {}).items()},
        warnings=_warnings(len(results), len(counts), empty_share, by_class),
        **({} if hidden_truth is None else _against_truth(results, hidden_truth, set(counts))),
    )


def _against_truth(
    results: Sequence[dict[str, Any]], truth: dict[str, Any], image_ids: set[int]
) -> dict[str, float | None]:
    """Precision, recall, class accuracy and mean IoU at IoU 0.5; None for a share of nothing."""
    right = [m for m in match_results(results, truth, iou=0.5, class_aware=True) if not m.ignored]
    found = [m for m in match_results(results, truth, iou=0.5, class_aware=False) if m.annotation is not None]
    matched = sum(m.annotation is not None for m in right)
    wanted = sum(a["image_id"] in image_ids and not a.get("iscrowd", 0) for a in truth["annotations"])
    same_class = sum(m.annotation is not None and m.annotation["category_id"] == m.result["category_id"] for m in found)
    return {
        "precision": matched / len(right) if right else None,
        "recall": matched / wanted if wanted else None,
        "class_accuracy": same_class / len(found) if found else None,
        "mean_iou": sum(m.iou for m in found) / len(found) if found else None,
    }


def _warnings(labels: int, images: int, empty_share: float, by_class: Mapping[str, int]) -> list[str]:
    if not labels:
        return [
            f"No pseudo-label on any of {images} unlabelled images: distillation would learn from the labelled images "
            "alone. Lower the score thresholds (or target_precision), train the teacher longer, or check that the "
            "unlabelled images show the same classes as the labelled ones."
        ]
    warnings = []
    if empty_share > NEARLY_ALL_EMPTY:
        warnings.append(
            f"{100 * empty_share:.0f} % of {images} unlabelled images have no pseudo-label ({labels} labels in all). "
            "Lower the score thresholds (or target_precision), or check that these images show the labelled classes."
        )
    absent = [name for name, count in by_class.items() if not count]
    if absent:
        warnings.append(
            f"No pseudo-label of {len(absent)} of {len(by_class)} classes ({', '.join(absent[:5])}): the student sees "
            "them on labelled images only. Label more images of them or lower their thresholds."
        )
    return warnings
