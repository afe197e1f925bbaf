"""Full-size street scenes in Cityscapes' official folders: 1024 x 2048 pixels, 20 instances each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH, INSTANCES = 1024, 2048, 20


def write_streets(root: Path, images: int) -> None:
    """Write leftImg8bit and gtFine of the split "val"; the pictures compress about as well as photographs."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pictures, labels = (root / kind / "val" / "synthetic" for kind in ("leftImg8bit", "gtFine"))
    pictures.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
        picture = np.clip(smooth + rng.integers(-3, 4, smooth.shape), 0, 255).astype(np.uint8)
        codes = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
        for instance in range(INSTANCES):
            y, x, radius = rng.integers(0, HEIGHT), rng.integers(0, WIDTH), rng.integers(20, 140)
            codes[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = (24 + instance % 4) * 1000 + instance
        stem = f"synthetic_{number:06d}_000019"
        Image.fromarray(picture).save(pictures / f"{stem}_leftImg8bit.png")
        Image.fromarray(codes).save(labels / f"{stem}_gtFine_instanceIds.png")
