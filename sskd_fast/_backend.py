"""Which implementation of the operators runs: the only place that asks what exists.

Backends: "reference" (plain PyTorch, any device), "cpu" (C++), "triton", "cuda", and "auto", which takes the fastest
that can run on the device of the tensors.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable

import torch

from sskd_fast import _env

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
_AUTO_ORDER = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}  # before "reference"
_DEVICE_TYPE = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
_LANGUAGE = {"cpu": "C++", "triton": "Triton", "cuda": "CUDA"}

_log = logging.getLogger(__name__)
_reasons: dict[str, Callable[[], str | None]] = {}


def provide(backend: str, why_unavailable: Callable[[], str | None]) -> None:
    """Called by the module that brings a backend: why_unavailable() gets it ready, or says why it cannot run here."""
    _reasons[backend] = why_unavailable
    _automatic.cache_clear()


def why_unavailable(backend: str, device_type: str) -> str | None:
    """Why `backend` cannot run on tensors of `device_type`; None where it can."""
    if backend == "reference":
        return None
    wanted = "cpu" if backend == "triton" and _env.triton_interpreted() else _DEVICE_TYPE[backend]
    if device_type != wanted:
        return f"it runs on {wanted} tensors and the tensors are on {device_type!r}"
    if backend not in _reasons:
        return f"this installation has no {_LANGUAGE[backend]} implementation of the operators"
    return _reasons[backend]()


def resolve(backend: str, device: torch.device) -> str:
    """The backend that will run on `device`: `backend` itself, or the choice made for "auto".

    SSKD_FAST_BACKEND replaces "auto". Raises ValueError for an unknown name, and RuntimeError with the reason where
    an explicitly chosen backend cannot run.
    """
    source = "backend"
    if backend == "auto":
        chosen = _env.backend_choice()
        if chosen is not None:
            backend, source = chosen, "SSKD_FAST_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(f"{source}={backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return _automatic(device.type)
    reason = why_unavailable(backend, device.type)
    if reason is not None:
        raise RuntimeError(
            f"{source}={backend!r} cannot run: {reason}; choose 'auto' or 'reference', which runs on every device"
        )
    return backend


@functools.cache
def _automatic(device_type: str) -> str:
    """The first backend that can run on a device type; the choice is logged once, and warned of where it is slow."""
    reasons: dict[str, str] = {}
    for name in _AUTO_ORDER.get(device_type, ()):
        reason = why_unavailable(name, device_type)
        if reason is None:
            _log.info("operators on %s tensors use the %r backend", device_type, name)
            return name
        reasons[name] = reason
    if reasons:
        causes = ". ".join(f"{name}: {reason}" for name, reason in reasons.items())
        message = f"{causes}. The operators run in plain PyTorch instead: the same results, many times slower."
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return "reference"
