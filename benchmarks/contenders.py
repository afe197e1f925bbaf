"""The contenders: each gives a step to time, or the reason why it cannot run a case."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from benchmarks import dense
from benchmarks.cases import FINE, TEMPERATURE, Case, operators_step
from sskd_fast import _backend

Step = Callable[[], None]
LIMIT_BYTES = 4 << 30


def operators(backend: str) -> Callable[[Case, torch.dtype, str], Step | str]:
    """A step of the operators of one backend."""

    def contender(case: Case, dtype: torch.dtype, device: str) -> Step | str:
        reason = _backend.why_unavailable(backend, device)
        return reason or functools.partial(operators_step, *case.inputs(dtype, device), backend=backend)

    return contender


def dense_eager(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    return _too_large(case, device) or functools.partial(dense.dense_step, *case.inputs(dtype, device))


def dense_compiled(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    compiled = torch.compile(dense.image_loss, dynamic=False)
    return _too_large(case, device) or functools.partial(
        dense.dense_step, *case.inputs(dtype, device), image_loss=compiled
    )


def metric_learning(case: Case, dtype: torch.dtype, device: str) -> Step | str:
    """SupConLoss: every other pixel a negative, no sampling. (NTXentLoss holds a pairs x pairs matrix.)"""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return "pytorch-metric-learning is not installed"
    if case.pixels > 6000 or dtype != torch.float32:
        return f"its matrices of {2 * case.pixels} x {2 * case.pixels} take too much memory, or it lacks the dtype"
    from pytorch_metric_learning.losses import SupConLoss

    _, _, weak, strong = case.inputs(dtype, device)
    loss, labels = SupConLoss(temperature=TEMPERATURE), torch.arange(case.pixels, device=device).repeat(2)

    def step() -> None:
        loss(torch.cat([weak, strong]), labels).backward()
        weak.grad = None

    return step


def _too_large(case: Case, device: str) -> str:
    """The reason why the dense matrices do not fit, or "": about six of them are alive at a time."""
    size = dense.dense_bytes(case.images, case.pixels)
    limit = torch.cuda.get_device_properties(device).total_memory // 8 if device != "cpu" else LIMIT_BYTES
    return "" if size < limit else f"one of its matrices would take {size / 2**30:.1f} GiB, and it holds several"


CONTENDERS: dict[str, Callable[[Case, torch.dtype, str], Step | str]] = {
    "cpu": operators("cpu"),
    "reference": operators("reference"),
    "dense": dense_eager,
    "dense-compiled": dense_compiled,
    "metric-learning": metric_learning,
}


# Timed only on a GPU, by benchmarks/gpu_steps.
GPU_BACKENDS: dict[str, Callable[[Case, torch.dtype, str], Step | str]] = {
    backend: operators(backend) for backend in ("triton", "cuda")
}


def step_of(contender: str, case: Case, dtype: torch.dtype, device: str = "cpu") -> Step | str:
    """The step on tensors of a device, or the reason why there is none. The step does not wait for a GPU to finish."""
    if contender == "reference" and case == FINE and device == "cpu":
        return "left out, since it takes about half a minute per step"
    return (CONTENDERS | GPU_BACKENDS)[contender](case, dtype, device)
