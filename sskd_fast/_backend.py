"""Backend selection for the operators: the only place that checks which implementations are available.

Backends: "reference" (plain PyTorch, any device), "cpu" (C++), "triton", "cuda", and "auto". "auto" picks for each
operator the fastest one that runs on the tensors' device. On a GPU, _backend_costs.py ranks them. An operator that a
chosen backend for GPUs lacks runs as with "auto".
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from sskd_fast import _backend_costs, _env

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
OPERATORS = _backend_costs.OPERATORS
_DEVICE_TYPE = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
_LANGUAGE = {"cpu": "C++", "triton": "Triton", "cuda": "CUDA"}

_log = logging.getLogger(__name__)
_reasons: dict[str, Callable[[], str | None]] = {}


def provide(backend: str, why_unavailable: Callable[[], str | None]) -> None:
    """Registers a backend. why_unavailable() prepares it and returns None, or returns why it cannot run here."""
    _reasons[backend] = why_unavailable
    _automatic.cache_clear()
    _warn_of_reference.cache_clear()


def why_unavailable(backend: str, device_type: str) -> str | None:
    """The reason that `backend` cannot run on tensors of `device_type`; None if it can."""
    if backend == "reference":
        return None
    wanted = "cpu" if backend == "triton" and _env.triton_interpreted() else _DEVICE_TYPE[backend]
    if device_type != wanted:
        return f"it runs on {wanted} tensors and the tensors are on {device_type!r}"
    if backend not in _reasons:
        return f"this installation has no {_LANGUAGE[backend]} implementation of the operators"
    return _reasons[backend]()


def resolve(backend: str, device: torch.device, operator: str) -> str:
    """The backend that will run `operator` (one of OPERATORS) on `device`: `backend` itself, or the choice for "auto".

    A backward pass uses the operator name of its forward pass. SSKD_FAST_BACKEND replaces "auto". Raises ValueError for
    an unknown name, and RuntimeError with the reason if an explicitly chosen backend cannot run.
    """
    source = "backend"
    if backend == "auto":
        chosen = _env.backend_choice()
        if chosen is not None:
            backend, source = chosen, "SSKD_FAST_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(f"{source}={backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return _automatic(device, operator)
    reason = why_unavailable(backend, device.type)
    if reason is not None:
        raise RuntimeError(
            f"{source}={backend!r} cannot run: {reason}; choose 'auto' or 'reference', which runs on every device"
        )
    if device.type == "cuda" and backend in _backend_costs.BACKENDS:
        return backend if backend in _backend_costs.backends_of(operator) else _automatic(device, operator)
    return backend


def gpu_order(operator: str, capability: str | None, costs: Path = _backend_costs.FILE) -> tuple[list[str], str]:
    """The backends of an operator on a GPU, fastest first, and the evidence for that order.

    capability: the GPU's compute capability, such as "9.0". Triton comes first if the operator has no known costs or if
    they are too close to tell, since Triton needs no compiler.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator={operator!r} is unknown; expected one of {', '.join(OPERATORS)}")
    backends = _backend_costs.backends_of(operator)
    if len(backends) == 1:
        return list(backends), "the only one that has it"
    cost = _backend_costs.cost(operator, capability, costs)
    if cost is None:
        return list(backends), "neither measured nor counted; Triton needs no compiler"
    if cost.close():
        return list(backends), f"{cost}; too close to tell, and Triton needs no compiler"
    return sorted(backends, key=lambda name: cost.amounts[name]), str(cost)


def capability_of(device: torch.device) -> str | None:
    """The compute capability of a GPU, such as "9.0"; None if torch sees no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


@functools.cache
def _automatic(device: torch.device, operator: str) -> str:
    """The fastest backend that can run an operator on a device. Logs the choice once; warns if it is the slow one."""
    reasons: dict[str, str] = {}
    order, why = ["cpu"] if device.type == "cpu" else [], ""
    if device.type == "cuda":
        order, why = gpu_order(operator, capability_of(device))
    for name in order:
        reason = why_unavailable(name, device.type)
        if reason is None:
            details = "".join(f"; {other} does not run: {cause}" for other, cause in reasons.items())
            _log.info("%s on %s tensors uses the %r backend (%s%s)", operator, device, name, why or "C++", details)
            return name
        reasons[name] = reason
    if reasons:
        # Of all backends, so that one warning serves all operators if none of the backends runs.
        every = _backend_costs.BACKENDS if device.type == "cuda" else ("cpu",)
        causes = [f"{name}: {reason}" for name in every if (reason := why_unavailable(name, device.type)) is not None]
        _warn_of_reference(". ".join(causes), "The operators run" if len(causes) == len(every) else f"{operator} runs")
    return "reference"


@functools.cache
def _warn_of_reference(causes: str, what: str) -> None:
    """Warns once for the same causes, even if they affect several operators."""
    message = f"{causes}. {what} in plain PyTorch instead: the same results, many times slower."
    warnings.warn(message, RuntimeWarning, stacklevel=2)
