"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

Every random decision of the operators is a pure function of (seed, row, column, stream). So the result does not depend
on the backend, the number of threads, or the order of execution. 32-bit words are kept in int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_TRIALS = 0
STREAM_RACE = 1
STREAM_ANCHORS = 2
STREAM_BANK = 3
STREAM_BOXES = 4

MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter.

    counter: four int64 tensors of words in [0, 2^32) that broadcast to one shape; key: two one-element int64 tensors
    of such words. Returns four int64 tensors of the broadcast shape with words in [0, 2^32).
    """
    x0, x1, x2, x3 = (word.clone(memory_format=torch.contiguous_format) for word in torch.broadcast_tensors(*counter))
    k0, k1 = key
    low, high = torch.empty_like(x0), torch.empty_like(x0)
    for _ in range(_ROUNDS):
        # An int64 product wraps to the same 64 bits as the unsigned one; shift and mask recover both halves.
        torch.mul(x0, _MULTIPLIER_0, out=low)
        torch.mul(x2, _MULTIPLIER_1, out=high)
        torch.bitwise_right_shift(high, 32, out=x0)
        x0.bitwise_and_(MASK).bitwise_xor_(x1).bitwise_xor_(k0)
        torch.bitwise_right_shift(low, 32, out=x2)
        x2.bitwise_and_(MASK).bitwise_xor_(x3).bitwise_xor_(k1)
        torch.bitwise_and(high, MASK, out=x1)
        torch.bitwise_and(low, MASK, out=x3)
        k0, k1 = (k0 + _WEYL_0) & MASK, (k1 + _WEYL_1) & MASK
    return x0, x1, x2, x3


def seed_key(seed: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The Philox key of a seed: its low and its high 32 bits, each a one-element int64 tensor on `device`.

    seed: an int, taken modulo 2^64, or a one-element int64 tensor; both give the same key.
    Raises TypeError or ValueError for anything else.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed: a tensor must be int64, found {seed.dtype}")
        if seed.numel() != 1:
            raise ValueError(f"seed: a tensor must have one element, found shape {tuple(seed.shape)}")
        value = seed.reshape(1).to(device)
        return value & MASK, (value >> 32) & MASK
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int or a one-element int64 tensor, found {type(seed).__name__}")
    # Filled on the device: a copy from the host would synchronise, and a CUDA graph cannot capture one.
    low, high = (torch.full((1,), word, dtype=torch.int64, device=device) for word in (seed & MASK, seed >> 32 & MASK))
    return low, high


def random_words(key: tuple[Tensor, Tensor], row: Tensor, column: Tensor, stream: int) -> Words:
    """Four random words for (key, row, column, stream), with counter (column, row, stream, 0).

    row, column: int64 tensors that broadcast, values in [0, 2^32); stream: one of the STREAM_ constants.
    """
    return philox4x32((column, row, torch.full_like(column, stream), torch.zeros_like(column)), key)


def unit_interval(words: Tensor) -> Tensor:
    """Words as float64 numbers strictly between 0 and 1: (word + 1/2) / 2^32."""
    return (words.double() + 0.5).mul_(2.0**-32)
