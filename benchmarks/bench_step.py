"""A whole step: fuse, sample and contrast, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import CASES, DTYPES, Case
from benchmarks.contenders import CONTENDERS, step_of

FLAT = Case(8, 19, 37, sharpness=1.0)
SIZES = {**CASES, FLAT.name: FLAT}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SIZES)
def test_step(benchmark: Any, case: str, dtype: str, contender: str) -> None:
    step = step_of(contender, SIZES[case], DTYPES[dtype])
    if isinstance(step, str):
        pytest.skip(step)
    if SIZES[case] is FLAT and (contender != "cpu" or dtype != "float32"):
        pytest.skip("the time of this contender does not depend on the scores")
    benchmark.group = f"step {case} {dtype}"
    benchmark.extra_info.update(operator="step", contender=contender, case=case, dtype=dtype)
    benchmark.pedantic(step, rounds=9 if contender == "cpu" else 5, warmup_rounds=2 if contender == "cpu" else 1)
