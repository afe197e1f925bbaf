"""The public operators: score fusion, negative sampling, hardest negatives and pixel contrast.

Backends: "auto", or one of "reference" (PyTorch), "cpu" (C++), "triton", "cuda"; see sskd_fast/_backend.py.
"""

from __future__ import annotations

from sskd_fast._native import release_memory
from sskd_fast.ops.expected_pixel_contrast import expected_pixel_contrast
from sskd_fast.ops.hardest_negatives import hardest_negatives
from sskd_fast.ops.negative_sampling import sample_negatives
from sskd_fast.ops.pixel_contrast import pixel_contrast
from sskd_fast.ops.score_fusion import fuse_scores, objectness

__all__ = [
    "expected_pixel_contrast",
    "fuse_scores",
    "hardest_negatives",
    "objectness",
    "pixel_contrast",
    "release_memory",
    "sample_negatives",
]
