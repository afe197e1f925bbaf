"""Readers and writers by format name; a new format is a module in this folder and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sskd_fast.data.formats.coco import read_coco, write_coco, write_coco_results
from sskd_fast.data.formats.cvat import read_cvat
from sskd_fast.data.formats.label_studio import read_label_studio
from sskd_fast.data.formats.labelme import read_labelme, write_labelme
from sskd_fast.data.formats.yolo import read_yolo, write_yolo

# Takes labels, the folder of their images, and class names that come first; returns a COCO instances dict.
Reader = Callable[[Path, Path, Sequence[str]], dict[str, Any]]
# Takes a COCO instances dict and a file or folder; returns the written files.
Writer = Callable[[Mapping[str, Any], Path], list[Path]]

READERS: dict[str, Reader] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "label_studio": read_label_studio,
}

WRITERS: dict[str, Writer] = {
    "coco": write_coco,
    "coco_results": write_coco_results,
    "yolo": write_yolo,
    "labelme": write_labelme,
}
