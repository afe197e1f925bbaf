"""Checks of operator arguments: each error names the argument, what was found and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(name: str, value: object, shape: tuple[int | str, ...]) -> Tensor:
    """`value` as a tensor of `shape`, where a letter stands for any size. Raises TypeError or ValueError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(value).__name__}")
    found = tuple(value.shape)
    matches = len(found) == len(shape) and all(isinstance(s, str) or s == f for s, f in zip(shape, found, strict=True))
    if not matches:
        expected = ", ".join(str(s) for s in shape)
        raise ValueError(f"{name}: found shape {found}, expected ({expected})")
    return value


def check_floating(name: str, value: object, shape: tuple[int | str, ...]) -> Tensor:
    """A floating-point tensor of `shape`; half precision is returned in float32."""
    tensor = check_tensor(name, value, shape)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, found {tensor.dtype}")
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_indices(name: str, value: object, shape: tuple[int | str, ...], size: int) -> Tensor:
    """An int32 or int64 tensor of `shape` with values in [-1, size); values are checked on the CPU only."""
    tensor = check_tensor(name, value, shape)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected int32 or int64, found {tensor.dtype}")
    if tensor.device.type == "cpu" and tensor.numel() > 0:
        low, high = (int(x) for x in torch.aminmax(tensor))
        if low < -1 or high >= size:
            raise ValueError(f"{name}: found values in [{low}, {high}], expected -1 or an index below {size}")
    return tensor


def check_groups(name: str, value: object, length: int) -> Tensor:
    """A (length,) integer tensor of group ids, as int64."""
    tensor = check_tensor(name, value, (length,))
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor of group ids, found {tensor.dtype}")
    return tensor.long()


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, one of `choices`. Raises ValueError."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; expected one of {', '.join(choices)}")
    return value


def check_count(name: str, value: int) -> int:
    """A positive int. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, found {value}")
    return value


def check_temperature(temperature: float) -> float:
    """A positive finite temperature. Raises ValueError."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a positive finite number, found {temperature}")
    return float(temperature)


def check_same(reference: str, tensor: Tensor, **others: Tensor) -> None:
    """Every other tensor has the dtype and the device of `tensor`. Raises ValueError."""
    for name, other in others.items():
        if other.device != tensor.device:
            raise ValueError(f"{name}: on {other.device}, expected {tensor.device} as {reference}")
        if other.is_floating_point() and other.dtype != tensor.dtype:
            raise ValueError(f"{name}: dtype {other.dtype}, expected {tensor.dtype} as {reference}")
