"""The processes of one job, its ranks, as `torchrun` and `accelerate launch` start them; without these, one rank.

The first rank runs the job.  The others follow: they do what it orders, and take part in what it does itself.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sskd_fast import _env

T = TypeVar("T")


# The first rank may measure or write for long while the others wait; one that has died is seen at once.
_PATIENCE = datetime.timedelta(days=2)
_alone = False


def meet(*, cuda: bool) -> None:
    """Has all ranks of the job meet: tensors of the CPU travel by gloo, those of a GPU, one a rank, by NCCL."""
    if cuda:
        torch.cuda.set_device(_env.local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)


def order(work: Callable[..., object], *arguments: object) -> None:
    """Has the other ranks do some work, of a function that they can import by its name; this rank does its own."""
    from_first((work, arguments))


def dismiss() -> None:
    """Has the other ranks go on after `follow`."""
    from_first(None)


def follow() -> None:
    """Does what the first rank orders, until it dismisses the others."""
    while (ordered := from_first(None)) is not None:
        work, arguments = ordered
        work(*arguments)


def lost(error: RuntimeError) -> bool:
    """True if an error says that another rank cannot be reached any more."""
    return count() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block, this rank acts as the only one, for work that the others do not take part in."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def count() -> int:
    """The number of ranks, 1 if none have met."""
    met = not _alone and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if met else 1


def number() -> int:
    """The number of this rank, from 0 on."""
    return dist.get_rank() if count() > 1 else 0


def total(own: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradient; the tensor itself if there is one."""
    if count() == 1:
        return own
    summed = own.detach().clone()
    dist.all_reduce(summed)
    return summed


def rows_of_others(own: Tensor) -> Tensor:
    """The rows (n, ...) of a tensor on all other ranks, whose lengths may differ, in their order; without gradient."""
    lengths = gathered(len(own))
    padded = own.detach().new_zeros((max(lengths), *own.shape[1:]))
    padded[: len(own)] = own.detach()
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    rows = [some[:n] for some, n in zip(found, lengths, strict=True)]
    return torch.cat(rows[: number()] + rows[number() + 1 :])


def gathered(own: T) -> list[T]:
    """An object of every rank, in their order."""
    if count() == 1:
        return [own]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, own)
    return found


def from_first(own: Any) -> Any:
    """The object of the first rank."""
    if count() == 1:
        return own
    found = [own]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def share(items: int) -> slice:
    """The places of this rank's share of some items, which are divided evenly."""
    size = items // count()
    return slice(number() * size, (number() + 1) * size)
