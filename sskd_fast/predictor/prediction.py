"""Instances that a model finds in one image.

Shape letters: n instances, H x W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True)
class Prediction:
    """Predicted instances of one image, best score first.

    size: (H, W).  rles: masks as compressed COCO run-length codes.  labels: class indices.  scores: in [0, 1].
    class_names, category_ids: by class index, for all classes.  file_name: of the image, "" if it came from memory.
    """

    size: tuple[int, int]
    rles: list[dict[str, Any]] = field(repr=False)
    labels: list[int]
    scores: list[float]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    file_name: str = ""

    @classmethod
    def of_results(
        cls,
        results: Sequence[dict[str, Any]],
        size: tuple[int, int],
        class_names: tuple[str, ...],
        category_ids: tuple[int, ...],
        file_name: str = "",
    ) -> Prediction:
        """Builds a prediction from the COCO results of one image."""
        index = {category: label for label, category in enumerate(category_ids)}
        return cls(
            size,
            [result["segmentation"] for result in results],
            [index[result["category_id"]] for result in results],
            [float(result["score"]) for result in results],
            class_names,
            category_ids,
            file_name,
        )

    def __len__(self) -> int:
        return len(self.rles)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(n, H, W) bool, decoded on each access."""
        if not self.rles:
            return np.zeros((0, *self.size), dtype=np.bool_)
        masks: NDArray[np.bool_] = coco_mask.decode(self.rles).transpose(2, 0, 1).astype(np.bool_)
        return masks

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(n, 4) float64: x0, y0, x1, y1 in pixels; x1 and y1 are exclusive."""
        if not self.rles:
            return np.zeros((0, 4))
        boxes: NDArray[np.float64] = coco_mask.toBbox(self.rles)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""
        return [self.class_names[label] for label in self.labels]

    def above(self, score: float) -> Prediction:
        """The instances with at least this score."""
        kept = [i for i, found in enumerate(self.scores) if found >= score]
        return replace(
            self,
            rles=[self.rles[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            scores=[self.scores[i] for i in kept],
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results of the image: image_id, category_id, segmentation, score."""
        return [
            {"image_id": image_id, "category_id": self.category_ids[label], "segmentation": rle, "score": score}
            for rle, label, score in zip(self.rles, self.labels, self.scores, strict=True)
        ]

    def to_supervision(self) -> Detections:
        """The instances as `supervision.Detections` with class names in `data`.

        Raises ImportError if supervision is missing.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        return Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks,
            confidence=np.array(self.scores, dtype=np.float32),
            class_id=np.array(self.labels, dtype=int),
            data={"class_name": np.array(self.names, dtype=str)},
        )
