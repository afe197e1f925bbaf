"""Records that travel through the package: instances of an image, an image with its instances, and a batch.

Shape letters: n instances, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Instances:
    """Instance masks of one image, ground truth or pseudo-labels.

    masks: (n, H, W) bool; they may overlap and nest.
    labels: (n,) int64, contiguous class indices in [0, C).
    scores: (n,) float32 in [0, 1]; 1 for ground truth.
    crowd: (n,) bool; the losses ignore the pixels of crowd regions.
    """

    masks: Tensor
    labels: Tensor
    scores: Tensor
    crowd: Tensor

    @classmethod
    def empty(cls, height: int, width: int) -> Instances:
        """An empty set of instances for an image of height x width."""
        return cls(
            masks=torch.zeros((0, height, width), dtype=torch.bool),
            labels=torch.zeros(0, dtype=torch.int64),
            scores=torch.zeros(0, dtype=torch.float32),
            crowd=torch.zeros(0, dtype=torch.bool),
        )

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def select(self, keep: Tensor) -> Instances:
        """The instances at `keep`: a (n,) bool mask or an int64 index tensor."""
        return Instances(self.masks[keep], self.labels[keep], self.scores[keep], self.crowd[keep])


@dataclass
class Sample:
    """One image with its labels.

    image: (3, H, W) uint8 RGB.  instances: None if the image is unlabelled.
    """

    image: Tensor
    instances: Instances | None
    image_id: int
    file_name: str
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Batch:
    """The images of one training step: B of them in two views of the same geometry.

    weak, strong: (B, 3, H, W) float32 in [0, 1].  valid: (B, H, W) bool, False on padding and on crowd regions.
    targets: B records with masks (n, H, W) in the geometry of the views; crowd instances are already removed.
    first, joint_size: the number of its first image in the joint batch of all ranks, and how many images that has.
    """

    weak: Tensor
    strong: Tensor
    valid: Tensor
    targets: list[Instances]
    image_ids: list[int]
    first: int = 0
    joint_size: int = 0

    @property
    def of(self) -> int:
        """The number of images in the joint batch."""
        return self.joint_size or len(self.image_ids)

    def part(self, rows: slice) -> Batch:
        """Some neighbouring images of the batch."""
        return Batch(
            self.weak[rows], self.strong[rows], self.valid[rows], self.targets[rows], self.image_ids[rows],
            self.first + rows.start, self.of,
        )  # fmt: skip

    @classmethod
    def empty(cls, height: int, width: int) -> Batch:
        """A batch without images, with views of height x width."""
        views = torch.zeros((0, 3, height, width))
        return cls(views, views, torch.zeros((0, height, width), dtype=torch.bool), [], [])
