"""Registration of the raw operators: one schema, one implementation for every device, one fake for compilers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from sskd_fast import _backend, _native, kernels

_LIBRARY = torch.library.Library("sskd_fast", "DEF")


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Defines `sskd_fast::<schema>` and returns it as a function.

    The last argument of every schema is `str backend`. run: called when the operator runs, with tensors of any device
    and the backend from `_backend.resolve`, so compilers see none of it. fake: takes the same arguments without data
    and returns empty tensors of the right shapes and dtypes.
    """
    name = schema.partition("(")[0]
    # A backward pass uses the backend of its forward pass, whose state it reads.
    operator = name.removesuffix("_backward")

    def resolved(*arguments: Any) -> Any:
        *inputs, backend = arguments
        device = next(x.device for x in inputs if isinstance(x, torch.Tensor))
        # Operators choose their own precision, so autocast is off inside them.
        with torch.autocast(device.type, enabled=False):
            return run(*inputs, _backend.resolve(backend, device, operator))

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, resolved, device)
    torch.library.register_fake(f"sskd_fast::{name}", fake, lib=_LIBRARY)
    overload: Callable[..., Any] = getattr(torch.ops.sskd_fast, name).default
    return overload


def implementation(backend: str, operator: str) -> Callable[..., Any]:
    """A backend's function for a raw operator; it takes no `backend` argument. The schemas are in csrc/schemas.h."""
    if backend in _PYTHON:
        module = importlib.import_module(f"{_PYTHON[backend]}.{operator.removesuffix('_backward')}")
        return getattr(module, operator)
    return with_types_of_errors(getattr(_native.operators(), operator))


def with_types_of_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A native operator that raises ValueError for wrong values, and torch.OutOfMemoryError if memory runs out.

    The stable ABI carries the messages of errors, and not their types in every version of PyTorch. Training retries
    with smaller batches only after OutOfMemoryError.
    """

    @functools.wraps(function, assigned=())
    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (RuntimeError, ValueError) as error:
            message = str(error)
            if message.startswith(_VALUE_ERROR):
                raise ValueError(message.removeprefix(_VALUE_ERROR)) from None
            if "out of memory" not in message:
                raise
            raise torch.OutOfMemoryError(message) from error

    return called


_VALUE_ERROR = "ValueError: "  # of check_value in csrc/tensors.h
_PYTHON = {"reference": "sskd_fast.reference", "triton": kernels.__name__}
