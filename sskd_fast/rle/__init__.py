"""Run-length codes of masks: all COCO forms checked and converted to compressed RLE, and built from pixel runs."""

from sskd_fast.rle.errors import MaskError
from sskd_fast.rle.runs import box_of_rle, pixels_of_runs, rle_of_box, rle_of_runs, run_lengths
from sskd_fast.rle.segmentation import encode_segmentation

__all__ = [
    "MaskError",
    "box_of_rle",
    "encode_segmentation",
    "pixels_of_runs",
    "rle_of_box",
    "rle_of_runs",
    "run_lengths",
]
