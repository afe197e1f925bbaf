"""The stream of training batches. Step s is a pure function of the seed and s, on any number of workers.

Shape letters: B images, H x W pixels of a view, n instances.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sskd_fast._interrupt import leave_to_parent
from sskd_fast.data.instances import Batch, Instances
from sskd_fast.data.source import ImageSource
from sskd_fast.data.views import Views, draw_views

_ORDER, _DRAW, _VIEW = 0, 1, 2


def batches(
    source: ImageSource,
    batch_size: int,
    views: Views,
    *,
    seed: int,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    weights: Sequence[float] | None = None,
    share: slice = slice(None),
) -> Iterator[Batch]:
    """Batches of steps start_step, start_step + 1, ...; the same for any number of workers.

    Images come in one seeded permutation per epoch. Permutations continue across batches, so a set smaller than a batch
    repeats within it.  With `weights` (one per image, not negative), images are drawn independently in proportion.
    steps: number of batches, None for an endless stream.  workers: processes that prepare batches, 0 for none.  share:
    the positions of a batch that this process draws, all by default; other ranks draw the rest.  Raises ValueError for
    an empty set, a batch size below 1, or invalid weights.
    """
    if len(source) == 0:
        raise ValueError(f"{source.name or 'the data set'} has no image; expected at least one to draw batches from")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if weights is not None and (len(weights) != len(source) or min(weights) < 0 or sum(weights) <= 0):
        raise ValueError(
            f"weights: {len(weights)} values between {min(weights, default=0)} and {max(weights, default=0)}; "
            f"expected one for each of {len(source)} images, none negative and one above 0"
        )
    cumulative = None if weights is None else list(itertools.accumulate(weights))
    drawn = _Steps(source, batch_size, views, seed, cumulative, range(batch_size)[share])
    numbers = itertools.count(start_step) if steps is None else range(start_step, start_step + steps)
    if workers == 0:
        return (_unpack(drawn[step]) for step in numbers)
    loader = DataLoader(
        drawn,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_to_parent,
        generator=torch.Generator(),  # not the global one, from which dense models draw cells
        pin_memory=torch.cuda.is_available(),
    )
    return (_unpack(packed) for packed in loader)


def balance_weights(labels: Sequence[str], *, damped: bool = False) -> list[float]:
    """A weight for each image, summing to 1, so that all distinct labels are drawn equally often.

    damped: draw labels in proportion to the square root of their frequency, halfway to the natural frequencies.
    """
    counts = Counter(labels)
    share = {label: count**0.5 if damped else 1.0 for label, count in counts.items()}
    total = sum(share.values())
    return [share[label] / (counts[label] * total) for label in labels]


def derived_seed(*parts: int) -> int:
    """A 63-bit seed hashed from integers, so that neighbouring seeds and steps give unrelated streams."""
    packed = struct.pack(f"<{len(parts)}q", *parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


@dataclass
class _Packed:
    """A batch with one tensor per field for all instances, so that few tensors pass between processes."""

    images: Tensor
    valid: Tensor
    masks: Tensor
    labels: Tensor
    scores: Tensor
    counts: list[int]
    image_ids: list[int]
    first: int
    joint_size: int

    def pin_memory(self) -> _Packed:
        """A copy in page-locked memory, from which copies to a device are asynchronous."""
        return replace(
            self,
            images=self.images.pin_memory(),
            valid=self.valid.pin_memory(),
            masks=self.masks.pin_memory(),
            labels=self.labels.pin_memory(),
            scores=self.scores.pin_memory(),
        )


def _unpack(packed: _Packed) -> Batch:
    fields = (packed.masks, packed.labels, packed.scores)
    parts = zip(*(field.split(packed.counts) for field in fields), strict=True)
    targets = [
        Instances(masks, labels, scores, torch.zeros(len(labels), dtype=torch.bool)) for masks, labels, scores in parts
    ]
    return Batch(
        packed.images[0], packed.images[1], packed.valid, targets, packed.image_ids, packed.first, packed.joint_size
    )


def _as_it_is(packed: Any) -> Any:
    return packed


class _Steps(Dataset[_Packed]):
    """Dataset of packed batches by step number."""

    def __init__(
        self, source: ImageSource, batch_size: int, views: Views, seed: int, cumulative: list[float] | None,
        slots: range,
    ) -> None:  # fmt: skip
        self.source = source
        self.image_ids = source.image_ids
        self.batch_size = batch_size
        self.views = views
        self.seed = seed
        self.cumulative = cumulative
        self.slots = slots
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, step: int) -> _Packed:
        drawn = self._indices(step)
        indices = [drawn[slot] for slot in self.slots]
        images = torch.empty((2, len(indices), 3, *self.views.size), dtype=torch.float32)
        valid = torch.empty((len(indices), *self.views.size), dtype=torch.bool)
        targets: list[Instances] = []
        for slot, index in enumerate(indices):
            seed = derived_seed(self.seed, _VIEW, step, self.slots[slot])
            images[0, slot], images[1, slot], valid[slot], instances = draw_views(self.source, index, self.views, seed)
            targets.append(instances)
        return _Packed(
            images,
            valid,
            torch.cat([target.masks for target in targets]),
            torch.cat([target.labels for target in targets]),
            torch.cat([target.scores for target in targets]),
            [len(target) for target in targets],
            [self.image_ids[index] for index in indices],
            self.slots.start,
            self.batch_size,
        )

    def _indices(self, step: int) -> list[int]:
        if self.cumulative is not None:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, _DRAW, step))
            draws = torch.rand(self.batch_size, generator=generator, dtype=torch.float64) * self.cumulative[-1]
            last = len(self.cumulative) - 1
            return [min(bisect.bisect_right(self.cumulative, draw), last) for draw in draws.tolist()]
        count = len(self.image_ids)
        first = step * self.batch_size
        return [self._order(place // count)[place % count] for place in range(first, first + self.batch_size)]

    def _order(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, _ORDER, epoch))
            self._epoch = (epoch, torch.randperm(len(self.image_ids), generator=generator).tolist())
        return self._epoch[1]
