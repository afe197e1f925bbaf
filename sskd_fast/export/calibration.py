"""The images that int8 is scaled by, as the network sees them.

Shape letters: B tiles, H x W pixels of an image, T tile side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sskd_fast.models.inference import InferenceConfig, cut_tiles, zoomed

Images = NDArray[np.float32]


def calibration_batches(images: Sequence[Tensor], inference: InferenceConfig, batch: int = 8) -> Iterator[Images]:
    """Tiles (B, 3, T, T) in [0, 1] of uint8 images (3, H, W), cut as prediction cuts them."""
    seen = [tile for _, _, _, tile in cut_tiles([zoomed(image, inference.zoom) for image in images], inference)]
    for start in range(0, len(seen), batch):
        yield (torch.stack(seen[start : start + batch]).float() / 255).numpy()
