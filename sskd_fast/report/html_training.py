"""Sections of report.html on training: curves of each stage, and the quality of the pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sskd_fast.method import title_of
from sskd_fast.report.curves import StageCurves, stage_curves
from sskd_fast.report.numbers import is_number

MOST_COLUMNS = 24


def curves_section(log: Sequence[Mapping[str, Any]]) -> str:
    """Loss of each logged stage, and AP of its fold models; "" if nothing is logged yet."""
    stages = stage_curves(log)
    if not stages:
        return ""
    legend = (
        "<p>Loss: faint as logged, strong as running mean. AP is the mean of a teacher's fold models, each on the "
        "labelled images that it was not trained on. With few images and short trainings its trend counts: its level "
        "is not that of the validation AP above.</p>"
        '<p class="legend"><span class="student"><span class="key"></span>AP</span>'
        '<span class="teacher"><span class="key"></span>AP50</span></p>'
    )
    return (
        f'<section><h2>Training</h2>{legend}<div class="charts">'
        + "".join(_stage(stage) for stage in stages)
        + "</div></section>"
    )


def _stage(stage: StageCurves) -> str:
    title = escape(title_of(stage.stage))
    steps = f"{stage.last_step} of {stage.steps} steps" if stage.last_step < stage.steps else f"{stage.steps} steps"
    parts = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{value:.4g}</td></tr>" for name, value in stage.parts.items()
    )
    details = (
        f"<details><summary>Parts at the last logged step</summary><table><tbody>{parts}</tbody></table></details>"
        if parts
        else ""
    )
    return f'<div class="card"><h3>{title}</h3><p class="soft">{steps}</p>{stage.loss}{stage.ap}{details}</div>'


def target_precision(settings: Mapping[str, Any]) -> float | None:
    """The precision that the thresholds of the pseudo-labels aim at; None if the settings do not say."""
    labels = settings.get("pseudo_labels")
    value = labels.get("target_precision") if isinstance(labels, dict) else None
    return float(value) if is_number(value) else None


def labels_section(statistics: Mapping[str, Mapping[str, Any]], target: float | None = None) -> str:
    """Pseudo-label statistics, one card for each record; "" if there is none.

    target: the precision that the thresholds aim at.
    """
    if not statistics:
        return ""
    first = next(iter(statistics.values()))["by_class"]
    order = sorted(first, key=lambda name: -first[name])
    cards = "".join(_labels(title, record, order) for title, record in statistics.items())
    aim = "" if target is None else f" The thresholds aim at a precision of {target:.2f}."
    return (
        "<section><h2>Pseudo-labels</h2><p>The teacher's labels on the unlabelled images, after thresholds and "
        f"mask NMS.{aim} Precision and recall, at IoU 0.5, are shown if the unlabelled images have annotations. "
        "Training does not see these.</p>"
        f'<div class="two">{cards}</div></section>'
    )


def _labels(title: str, record: Mapping[str, Any], order: Sequence[str]) -> str:
    tiles = [
        (f"{record['labels']}", f"labels on {record['images']} images"),
        (f"{record['labels_per_image']:.1f}", "labels per image"),
        (f"{100 * record['empty_share']:.0f} %", "images without a label"),
    ]
    for key, words in (
        ("precision", "precision (mask and class right)"),
        ("recall", "recall of hidden objects"),
        ("class_accuracy", "right class if the mask is right"),
        ("mean_iou", "mean IoU of right masks"),
    ):
        if is_number(record.get(key)):
            tiles.append((f"{record[key]:.2f}", words))
    cells = "".join(f"<div><dt>{words}</dt><dd>{number}</dd></div>" for number, words in tiles)
    return (
        f'<div class="card"><h3>{escape(title_of(title))}</h3><dl class="tiles">{cells}</dl>'
        f"{_by_class(record, order)}{_images_with(record['images_with'])}</div>"
    )


def _by_class(record: Mapping[str, Any], order: Sequence[str]) -> str:
    """Labels of each class as bars, with its score threshold, in the same order on every card."""
    counts, thresholds = record["by_class"], record.get("thresholds", {})
    full = max(counts.values(), default=0) or 1
    items = "".join(
        f'<li class="teacher"><div class="name"><span>{escape(name)}</span><span class="number">{count}'
        + (f" <small>from score {thresholds[name]:.2f}</small>" if name in thresholds else "")
        + f'</span></div><div class="track"><i style="width:{100 * count / full:.1f}%"></i></div></li>'
        for name, count in ((name, counts[name]) for name in dict.fromkeys([*order, *counts]) if name in counts)
    )
    return f'<ol class="bars">{items}</ol>'


def _images_with(counts: Sequence[int]) -> str:
    """Column chart of the images with 0, 1, 2, ... labels; a column stands for several numbers if there are many."""
    width = -(-len(counts) // MOST_COLUMNS)
    groups = [sum(counts[start : start + width]) for start in range(0, len(counts), width)]
    full = max(groups, default=0) or 1
    items = "".join(
        f'<li><i style="--share:{count / full:.3f}" title="{count} images"></i>{index * width}</li>'
        for index, count in enumerate(groups)
    )
    columns = f", {width} numbers a column" if width > 1 else ""
    words = f"Images by their number of labels{columns}; the tallest column is {full} images."
    return f'<p class="soft">{words}</p><ol class="columns-chart" role="img" aria-label="{words} {groups}">{items}</ol>'
