"""Checks of operator arguments. Each error names the argument, what was found and what was expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Tolerance of a score vector's norm around 1, and of its entries below 0.
_NORM_TOLERANCE, _LEAST_ENTRY = 1e-2, 1e-6
# Backends that check the values of indices and temperatures in their own code.
CHECK_THEIR_OWN = ("cpu", "cuda")


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
    tensor = check_stored(name, value, shape)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_stored(name: str, value: object, shape: tuple[int | str, ...]) -> Tensor:
    """A floating-point tensor of `shape`, in its own precision."""
    tensor = check_tensor(name, value, shape)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, found {tensor.dtype}")
    return tensor


def check_indices(name: str, value: object, shape: tuple[int | str, ...]) -> Tensor:
    """An int32 or int64 tensor of `shape`."""
    tensor = check_tensor(name, value, shape)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected int32 or int64, found {tensor.dtype}")
    return tensor


def check_index_values(name: str, index: Tensor, size: int) -> None:
    """Check that values lie in [-1, size). Raises ValueError on the CPU.

    On a GPU a check would wait for the device, so an assertion on the device stops it instead.
    """
    if index.numel() == 0:
        return
    low, high = torch.aminmax(index)
    if index.device.type != "cpu":
        torch._assert_async((low >= -1) & (high < size), f"{name}: expected -1 or an index below {size}")
    elif low < -1 or high >= size:
        raise ValueError(f"{name}: found values in [{int(low)}, {int(high)}], expected -1 or an index below {size}")


def check_finite(name: str, logits: Tensor) -> None:
    """Check that values are finite, image by image; on the CPU only. Raises ValueError."""
    if logits.device.type != "cpu" or logits.numel() == 0:
        return
    wrong = ~logits.isfinite().flatten(1).all(1)
    if bool(wrong.any()):
        image = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: image {image} has non-finite values, expected finite logits")


def check_weight(weight: object, count: int) -> Tensor:
    """A (count,) floating-point tensor of weights."""
    return check_floating("candidate_weight", weight, (count,)).detach()


def check_weight_values(weight: Tensor) -> None:
    """Check that weights are finite and at least 0; on the CPU only. Raises ValueError."""
    if weight.device.type == "cpu" and not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError("candidate_weight: found negative or non-finite values, expected finite weights of at least 0")


def check_unit_rows(name: str, scores: Tensor) -> None:
    """Check that rows are non-negative and of unit norm; on the CPU only. Raises ValueError."""
    if scores.device.type != "cpu" or scores.numel() == 0:
        return
    norms = torch.linalg.vector_norm(scores.detach(), dim=1)
    wrong = ~((norms - 1).abs() <= _NORM_TOLERANCE)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: row {row} has norm {float(norms[row]):.4g}, expected rows of unit norm")
    negative = scores.amin(1) < -_LEAST_ENTRY
    if bool(negative.any()):
        row = int(negative.nonzero()[0, 0])
        raise ValueError(
            f"{name}: row {row} has entries down to {float(scores[row].min()):.4g}, expected non-negative rows"
        )


def check_seed(seed: object, device: torch.device) -> Tensor:
    """A seed as a (1,) int64 tensor on `device`; an int is taken modulo 2^64. Raises TypeError or ValueError."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed: a tensor must be int64, found {seed.dtype}")
        if seed.numel() != 1:
            raise ValueError(f"seed: a tensor must have one element, found shape {tuple(seed.shape)}")
        return seed.reshape(1).to(device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int or a one-element int64 tensor, found {type(seed).__name__}")
    # Filled by the device: a copy from the host would wait for it, and a CUDA graph cannot hold one.
    return torch.full((1,), (seed + (1 << 63)) % (1 << 64) - (1 << 63), dtype=torch.int64, device=device)


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


def check_temperature(temperature: float | Tensor, device: torch.device) -> Tensor:
    """A temperature as a (1,) float64 tensor on `device`. Raises TypeError or ValueError.

    A number must be positive and finite; the value of a tensor is checked when the operator runs, on the CPU only.
    """
    if isinstance(temperature, Tensor):
        if not temperature.is_floating_point():
            raise TypeError(f"temperature: a tensor must be floating point, found {temperature.dtype}")
        if temperature.numel() != 1:
            raise ValueError(f"temperature: a tensor must have one element, found shape {tuple(temperature.shape)}")
        return temperature.detach().reshape(1).to(device, torch.float64)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature: expected a number or a tensor, found {type(temperature).__name__}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive finite number, found {temperature}")
    return torch.full((1,), float(temperature), dtype=torch.float64, device=device)


def check_temperature_value(temperature: Tensor) -> None:
    """Check that the value is positive and finite; on the CPU only. Raises ValueError."""
    if temperature.device.type == "cpu" and not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature: expected a positive finite number, found {float(temperature)}")


def check_margin(margin: float | None) -> float | None:
    """A finite margin or None. Raises TypeError or ValueError."""
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float))):
        raise TypeError(f"margin: expected a number or None, found {type(margin).__name__}")
    if margin is not None and not math.isfinite(margin):
        raise ValueError(f"margin: expected a finite number or None, found {margin}")
    return None if margin is None else float(margin)


def check_device(reference: str, tensor: Tensor, **others: Tensor | None) -> None:
    """Check that every other tensor is None or on the device of `tensor`. Raises ValueError."""
    for name, other in others.items():
        if other is not None and other.device != tensor.device:
            raise ValueError(f"{name}: on {other.device}, expected {tensor.device} as {reference}")


def check_same(reference: str, tensor: Tensor, **others: Tensor) -> None:
    """Check that every other tensor has the dtype and the device of `tensor`. Raises ValueError."""
    check_device(reference, tensor, **others)
    for name, other in others.items():
        if other.dtype != tensor.dtype:
            raise ValueError(f"{name}: dtype {other.dtype}, expected {tensor.dtype} as {reference}")
