"""Who is timed: each gives a step that is run again and again, or the reason why it cannot run a case."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from benchmarks import dense
from benchmarks.cases import FINE, TEMPERATURE, Case, operators_step

Step = Callable[[], None]
LIMIT_BYTES = 4 << 30


def ours(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    """The C++ operators on the CPU, elsewhere what "auto" takes."""
    backend = "cpu" if device == "cpu" else "auto"
    return functools.partial(operators_step, *case.inputs(dtype, device), backend=backend)


def reference(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    return functools.partial(operators_step, *case.inputs(dtype, device), backend="reference")


def dense_eager(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    return _too_large(case) or functools.partial(dense.dense_step, *case.inputs(dtype, device))


def dense_compiled(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    compiled = torch.compile(dense.image_loss, dynamic=False)
    return _too_large(case) or functools.partial(dense.dense_step, *case.inputs(dtype, device), image_loss=compiled)


def metric_learning(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    """SupConLoss: every other pixel a negative, no sampling. (NTXentLoss holds a pairs x pairs matrix.)"""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return "pytorch-metric-learning is not installed"
    if case.pixels > 6000 or dtype != torch.float32:
        return f"its matrices of {2 * case.pixels} x {2 * case.pixels} take too much memory or its type is another"
    from pytorch_metric_learning.losses import SupConLoss

    _, _, weak, strong = case.inputs(dtype, device)
    loss, labels = SupConLoss(temperature=TEMPERATURE), torch.arange(case.pixels, device=device).repeat(2)

    def step() -> None:
        loss(torch.cat([weak, strong]), labels).backward()
        weak.grad = None

    return step


def _too_large(case: Case) -> str:
    size = dense.dense_bytes(case.images, case.pixels)
    return "" if size < LIMIT_BYTES else f"one of its matrices would take {size / 2**30:.1f} GiB, and it holds several"


CONTENDERS: dict[str, Callable[[Case, torch.dtype, str], Step | str]] = {
    "cpu": ours,
    "reference": reference,
    "dense": dense_eager,
    "dense-compiled": dense_compiled,
    "metric-learning": metric_learning,
}


def step_of(contender: str, case: Case, dtype: torch.dtype, device: str = "cpu") -> Step | str:
    """The step on tensors of a device, or the reason why there is none. It does not wait for a GPU to end it."""
    if contender == "reference" and case == FINE:
        return "left out for its time, about half a minute a step"
    return CONTENDERS[contender](case, dtype, device)
