"""Parity of an exported file with its model: differences of logits and of mask AP."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sskd_fast.data.labeled import LabeledImages
from sskd_fast.evaluation import MaskAP, evaluate_masks
from sskd_fast.exported.agreement import Differences, matched_differences
from sskd_fast.exported.exported import Exported
from sskd_fast.exported.file_description import files_of
from sskd_fast.exported.quantization import tile_batches
from sskd_fast.files import write_json
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.source_prediction import predict_source, source_groups

# Allowed difference in mask AP between a file and its model, in percent.
TOLERANCE = 0.3


@dataclass(frozen=True)
class Parity:
    """Comparison of a model and its file on the same images.

    mask_difference, class_difference: maximum and mean absolute difference of logits over the queries above the score
    floor.  ap, ap50: mask AP in percent of the model and of the file.  tolerance: allowed change of AP in percent.
    """

    precision: str
    runtime: str
    images: int
    queries: int
    mask_difference_max: float
    mask_difference_mean: float
    class_difference_max: float
    class_difference_mean: float
    ap_model: float
    ap_file: float
    ap50_model: float
    ap50_file: float
    tolerance: float
    machine: str
    versions: dict[str, str]

    @property
    def ap_change(self) -> float:
        """AP of the file minus that of the model, in percent."""
        return self.ap_file - self.ap_model

    @property
    def passes(self) -> bool:
        """True if mask AP changes by no more than the tolerance."""
        return abs(self.ap_change) <= self.tolerance

    def write(self, path: Path) -> Path:
        """Writes the report beside an exported file as <its name>.parity.json and returns its path."""
        content = {
            "file": path.name,
            "bytes": sum(file.stat().st_size for file in files_of(path)),
            **dataclasses.asdict(self),
            "ap_change": self.ap_change,
            "passes": self.passes,
        }
        write_json(report_of(path), content)
        return report_of(path)


def report_of(path: Path) -> Path:
    """The path of the parity report of an exported file."""
    return path.with_name(f"{path.name}.parity.json")


def parity_report(
    model: Segmenter,
    exported: Exported,
    source: LabeledImages,
    inference: InferenceConfig,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Compares a model with its exported file on labelled images: logits per tile, and mask AP of the whole pipeline.

    Raises ValueError if the images have no instances to measure AP on.
    """
    of_model, of_file = (_average_precision(m, source, inference) for m in (model, exported))
    if math.isnan(of_model.ap):
        raise ValueError(f"source: found no instances on {len(source)} images, expected some to measure AP on")
    differences = _differences(model, exported, source, inference)
    (mask_max, mask_mean), (class_max, class_mean) = map(_largest_and_mean, (differences.masks, differences.classes))
    return Parity(
        precision=exported.description.precision, runtime=exported.runtime, images=len(source),
        queries=len(differences.masks), mask_difference_max=mask_max, mask_difference_mean=mask_mean,
        class_difference_max=class_max, class_difference_mean=class_mean, ap_model=of_model.ap, ap_file=of_file.ap,
        ap50_model=of_model.ap50, ap50_file=of_file.ap50, tolerance=tolerance, machine=machine(),
        versions={"python": platform.python_version(), "torch": torch.__version__},
    )  # fmt: skip


def _average_precision(model: Segmenter, source: LabeledImages, inference: InferenceConfig) -> MaskAP:
    results = predict_source(model, inference, source, source.category_ids)
    return evaluate_masks(source.ground_truth(), results, max_detections=inference.max_detections)


@torch.inference_mode()
def _differences(
    model: Segmenter, exported: Exported, source: LabeledImages, inference: InferenceConfig
) -> Differences:
    parts: list[Differences] = []
    device = next(model.parameters()).device
    for rows in source_groups(source):
        for batch in tile_batches([source.image(i) for i in rows], inference):
            tiles = torch.from_numpy(batch)
            pair = [(p.mask_logits.cpu(), p.class_logits.cpu()) for p in (model(tiles.to(device)), exported(tiles))]
            parts.append(matched_differences(pair[0], pair[1], inference.score_floor))
    return Differences(torch.cat([p.masks for p in parts]), torch.cat([p.classes for p in parts]))


def _largest_and_mean(difference: Tensor) -> tuple[float, float]:
    return (float(difference.max()), float(difference.mean())) if difference.numel() else (0.0, 0.0)


def machine() -> str:
    """The processor's name, the number of cores, and the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"
