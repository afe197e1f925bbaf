"""Run folders written by hand, and a parser of pages."""

from __future__ import annotations

import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from sskd_fast.method import EVERY_RUN, IN_VIEWS, ROW_ORDER, STAGE, stage_of
from sskd_fast.pseudo_labels import label_statistics

AP = {
    "zero_shot_teacher": 14.9, "supervised_teacher": 22.6, "supervised_teacher_views": 22.9, "adapted_teacher": 23.2,
    "adapted_teacher_views": 23.6, "matched_student": 18.1, "matched_student_views": 20.0, "supervised_student": 19.6,
    "supervised_student_views": 21.5, "distilled_student": 24.4, "distilled_student_views": 26.4,
    "refined_student": 25.3, "refined_student_views": 27.3,
}  # fmt: skip
CATEGORIES = {1: "disc", 2: "ring"}
VOID = {"meta", "img"}


def row(name: str, ap: float) -> dict[str, Any]:
    """A row of metrics.json; stages with unlabelled images see two of them for each labelled one."""
    stage = stage_of(name)
    assert stage is not None
    large, semi = stage.model == "teacher", stage.labels_from is not None
    found = {"name": name, "ap": ap, "ap50": 1.9 * ap, "params": 1_059_000 if large else 97_700, "seconds": 56.4}
    steps = 100 if stage.budget else 0
    found |= {"stride": 4.0 if large else 2.0, "steps": steps, "labeled_seen": 8 * steps, "cpu_seconds": 100.0}
    found |= {"unlabeled_seen": 16 * steps * semi, "label_seconds": 20.0 * semi}
    return found | ({"views": 6} if name not in STAGE else {})


def old_row(name: str, ap: float) -> dict[str, Any]:
    """A row as earlier versions wrote it."""
    return {key: value for key, value in row(name, ap).items() if key in ("name", "ap", "ap50", "params", "seconds")}


def gain(
    model: str, against: str, ap: float, low: float | None, high: float | None, stride: float | None = None
) -> dict[str, Any]:
    """An entry of "gains" in details.json; the other model has 20 AP."""
    found = {"model": model, "against": against, "stride": stride, "model_ap": 20.0 + ap, "against_ap": 20.0}
    return found | {"ap": ap, "low": low, "high": high}


def metrics_of(aps: dict[str, float], **more: Any) -> dict[str, Any]:
    rows = [row(name, ap) for name, ap in aps.items()]
    facts = {"dataset": "shapes", "seed": 0, "labeled_images": 200, "unlabeled_images": 1800, "val_images": 256}
    return {**facts, "max_detections": 100, "rows": rows, **more}


def disc(y: float, x: float, radius: float = 6, size: tuple[int, int] = (48, 64)) -> dict[str, Any]:
    yy, xx = np.mgrid[: size[0], : size[1]]
    encoded = rle.encode(np.asfortranarray((yy - y) ** 2 + (xx - x) ** 2 <= radius**2, dtype=np.uint8))
    return {"size": list(size), "counts": encoded["counts"].decode("ascii")}


def truth_of(images: int = 2) -> dict[str, Any]:
    """Each image has a disc at (12, 12), a ring at (30, 40) and a crowd region."""
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for category, where, crowd in ((1, (12, 12), 0), (2, (30, 40), 0), (1, (10, 50), 1)):
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category})
            annotations[-1] |= {"segmentation": disc(*where), "iscrowd": crowd}
    return {
        "images": [{"id": i, "file_name": f"scene {i}.png", "height": 48, "width": 64} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": annotations,
        "images_dir": "images",
    }


def result(image: int, category: int, y: float, x: float, score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": disc(y, x), "score": score}


RESULTS = [
    result(1, 1, 12, 13, 0.9),  # the disc
    result(1, 1, 30, 41, 0.8),  # the ring, called a disc
    result(1, 2, 40, 10, 0.7),  # nothing there
    result(1, 2, 30, 40, 0.2),  # too low to be shown
]


def save_images(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise, start=1):
        Image.fromarray(pixels).save(folder / f"scene {number}.png")


def make_run(folder: Path, measured: int = 7) -> Path:
    """The folder of a run after `measured` of its seven models; its rows include models in the teacher's views."""
    save_images(folder / "images")
    stages = [name for name in ROW_ORDER if name in EVERY_RUN][:measured]
    names = [name for name in ROW_ORDER if name in stages or IN_VIEWS.get(name) in stages]
    (folder / "config.yaml").write_text("seed: 0\nname: a <b> & c\n")
    if measured:
        (folder / "metrics.json").write_text(json.dumps(metrics_of({name: AP[name] for name in names})))
        (folder / "predictions").mkdir()
        (folder / "ground_truth.json").write_text(json.dumps(truth_of()))
        figures = {"ap75": 31.5, "ap_small": None, "per_class": {"a<b": 12.5, "c": 13.5}, "by_kind": {"one": 1.0}}
        (folder / "details.json").write_text(json.dumps({name: figures for name in names}))
    for name in names:
        (folder / "predictions" / f"{name}.json").write_text(json.dumps(RESULTS))
    for name in stages:
        with (folder / "log.jsonl").open("a") as log:
            for step in range(1, 41):
                record = {"stage": name, "step": step, "steps": 40, "lr": 0.1, "loss": 9 / step, "loss_mask": 4 / step}
                log.write(json.dumps(record) + "\n")
            log.write(json.dumps({"stage": name, "step": 40, "event": "eval", "ap": 20.0, "ap50": 40.0}) + "\n")
    if measured > 2:
        statistics = label_statistics(RESULTS[:2], [1, 2], CATEGORIES, truth_of(), thresholds={1: 0.6, 2: 0.7})
        (folder / "pseudo_labels").mkdir()
        (folder / "label_statistics.json").write_text(json.dumps({"supervised_teacher": asdict(statistics)}))
    return folder


class Page(HTMLParser):
    """A parser of a page, which checks that every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
