"""Whole steps and a fine map on the GPU backends, in Triton's interpreter without a GPU: the files gpu_*.py but
gpu_operators.py, which takes long enough in test_triton.py for a worker of its own."""

from __future__ import annotations

import pytest
from on_device import ROOT, in_a_process_of_its_own

FILES = sorted(path.name for path in (ROOT / "tests").glob("gpu_*.py") if path.name != "gpu_operators.py")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_steps_and_fine_maps_are_those_of_the_reference(file):
    in_a_process_of_its_own(f"tests/{file}")
