"""Tables from which the trials of negative sampling propose candidates, for the envelopes of negative_sampling.py.

Shape letters: A anchors, M candidates, E width of a score vector, T tables, P slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Mean number of slots of a candidate in a table of proposals: rounding up costs a sixteenth of the acceptance.
_SLOTS = 8
# Subtracted before slots are rounded up, so that masses that differ only in their last bit get the same number.
_SLOT_SLACK = 1e-9
# Mean s above which the even envelope accepts more often than the spread one. No short fraction, which rows that repeat
# would hit up to rounding.
_EVEN_FROM = 0.45 - 1e-9
# Rows of a group with a mean squared distance from their centre below _ALIKE differ by rounding only. The distance
# _ALIKE_BETA takes the place of that mean: any number makes a valid envelope, and this one makes t vanish.
_ALIKE, _ALIKE_BETA = 1e-26, 1e-12
# Rows of a group that are summed one after the other. Groups are long, so a sum by group has two levels.
_RUN = 256


@dataclass(frozen=True)
class Candidates:
    """The candidates: scores (M, E) or None, weight (M,) float64 or None, group (M,) int64; same: the scope."""

    scores: Tensor | None
    weight: Tensor | None
    group: Tensor
    same: bool


@dataclass(frozen=True)
class Proposals:
    """The tables from which each anchor's trials propose candidates, on the device of the tensors.

    There are T tables of slots, one after the other: the even one and, with scores, the spread one.
    entries (P,) int32: the candidate of a slot.  ratio (T * M,) float64: for each table, the weight v_q of a candidate
    divided by the envelope that its slots stand for.  table (A,): start of the ratios of the anchor's table, 0 or M.
    first, count, skip_from, skip_length (A,): the anchor's slots first .. first + count, without a skipped range.
    bound (A,) float64: factor of the envelope.  acceptance (A,): expected.  available (A,): candidates to draw from.
    order (M,) int32: the candidates by group.  own_from, own_until (A,): range of the anchor's group in `order`.
    """

    entries: Tensor
    ratio: Tensor
    table: Tensor
    first: Tensor
    count: Tensor
    skip_from: Tensor
    skip_length: Tensor
    bound: Tensor
    acceptance: Tensor
    available: Tensor
    order: Tensor
    own_from: Tensor
    own_until: Tensor


def build_proposals(anchor_scores: Tensor, anchor_group: Tensor, candidates: Candidates) -> Proposals:
    """The tables of slots and the envelope of every anchor, for at least one candidate.

    All shapes follow from the shapes of the arguments. The CPU has tables of its own in csrc/cpu/proposals.h, GPUs in
    kernels/proposals.py and csrc/cuda/proposals.cu.
    """
    size = len(candidates.group)
    grouped, order = candidates.group.sort(stable=True)
    own_from, own_until = (torch.searchsorted(grouped, anchor_group.contiguous(), right=r) for r in (False, True))
    weight = torch.ones_like(grouped, dtype=torch.float64) if candidates.weight is None else candidates.weight
    own = own_from, own_until
    mean = weight.mean()
    slots = torch.ones_like(order) if candidates.weight is None else _slots(weight, mean)
    # Rounding up adds at most one slot for each candidate to their mean.
    most = size if candidates.weight is None else (_SLOTS + 1) * size
    tables = [_Table.build(order, slots, most, weight, weight, own, candidates.same)]
    bound = torch.ones_like(anchor_group, dtype=torch.float64)
    acceptance = bound.clone()
    spread = torch.zeros_like(anchor_group, dtype=torch.bool)
    if candidates.scores is not None:
        # With scope "same", each group has its own centre; otherwise all candidates share one.
        cells = _Cells.of_groups(grouped, order) if candidates.same else None
        anchor_cell = None if cells is None else cells.number[own_from.clamp_max(size - 1)]
        t, half_spread = _spread_envelope(anchor_scores, anchor_cell, candidates.scores, cells, weight)
        mass = weight * (1 + t)
        most = (_SLOTS + 1) * size
        # The weighted mean of t is 1 by its definition, 0 for rows that are alike.
        tables.append(_Table.build(order, _slots(mass, 2 * mean), most, weight, mass, own, candidates.same))
        spread = half_spread < _EVEN_FROM
        acceptance = torch.where(spread, 0.5 * _SLOTS / (_SLOTS + 0.5), half_spread.clamp_max(1))
        # Rows may be slightly longer than 1; their dissimilarity can then exceed 1.
        longest, longest_candidate = (x.double().square().sum(1).max() for x in (anchor_scores, candidates.scores))
        bound = bound * ((longest + longest_candidate) / 2).clamp_min(1)
        # A margin for rounding: an envelope slightly too high costs trials, one too low would distort the law.
        bound = torch.where(spread, half_spread * (1 + 1e-4), bound)
    ranges = [torch.where(spread, y, x) for x, y in zip(tables[0].ranges, tables[-1].ranges, strict=True)]
    first, count, skip_from, skip_length = ranges
    drawable = torch.cat([order.new_zeros(1), (weight > 0)[order].long().cumsum(0)])
    available = drawable[own_until] - drawable[own_from]
    return Proposals(
        entries=torch.cat([table.entries for table in tables]),
        ratio=torch.cat([table.ratio for table in tables]),
        table=spread * size,
        first=first + spread * len(tables[0].entries),
        count=count,
        skip_from=skip_from,
        skip_length=skip_length,
        bound=bound,
        acceptance=acceptance,
        available=available if candidates.same else drawable[-1] - available,
        order=order.int(),
        own_from=own_from,
        own_until=own_until,
    )


@dataclass(frozen=True)
class _Table:
    """Slots of the candidates, grouped; ranges = first, count, skip_from, skip_length of every anchor."""

    entries: Tensor
    ratio: Tensor
    ranges: tuple[Tensor, Tensor, Tensor, Tensor]

    @classmethod
    def build(
        cls,
        order: Tensor,
        slots: Tensor,
        most: int,
        weight: Tensor,
        mass: Tensor,
        own: tuple[Tensor, Tensor],
        same: bool,
    ) -> _Table:
        """Lay out the slots of the candidates by group.

        order (M,): candidates by group.  slots (M,): at most `most` in total; times a unit, at least mass (M,).
        own: range of each anchor's group in `order`, first and last (A,).
        """
        unit = (mass / slots.clamp_min(1)).max()
        ends = torch.cat([slots.new_zeros(1), slots[order].cumsum(0)])
        first, last = ends[own[0]], ends[own[1]]
        # Padded with the first candidate, since the length of the result must not depend on the slots.
        repeats = torch.cat([slots[order], most - ends[-1:]])
        entries = torch.repeat_interleave(torch.cat([order, order[:1]]).int(), repeats, output_size=most)
        ratio = weight / (slots.clamp_min(1) * unit.clamp_min(torch.finfo(unit.dtype).tiny))
        none = torch.zeros_like(first)
        if same:
            return cls(entries, ratio, (first, last - first, ends[-1].expand_as(first), none))
        return cls(entries, ratio, (none, ends[-1] - (last - first), first, last - first))


def _slots(mass: Tensor, mean: Tensor) -> Tensor:
    """Numbers of slots, at least proportional to mass (M,), about _SLOTS for the mean mass; 0 for mass 0."""
    scale = _SLOTS / mean.clamp_min(torch.finfo(mass.dtype).tiny)
    return torch.where(mass > 0, torch.ceil(mass * scale * (1 - _SLOT_SLACK)).clamp_min(1), 0).long()


@dataclass(frozen=True)
class _Cells:
    """The groups that occur, numbered from 0 in ascending order; every tensor has length M, for any number of groups.

    order: the candidates by group.  number: the number of each candidate's group, in that order.  of_candidate: the
    same in the order of the candidates.  run_lengths: a group is cut into runs of at most _RUN candidates.  runs: the
    number of runs of each group.
    """

    order: Tensor
    number: Tensor
    of_candidate: Tensor
    run_lengths: Tensor
    runs: Tensor

    @classmethod
    def of_groups(cls, grouped: Tensor, order: Tensor) -> _Cells:
        """The cells of groups; grouped (M,): ids in ascending order, order (M,): the candidates they belong to."""
        size, place = len(grouped), torch.arange(len(grouped) + 1, device=grouped.device)
        begins = torch.cat([torch.ones_like(grouped[:1], dtype=torch.bool), grouped[1:] != grouped[:-1]])
        number = begins.long().cumsum(0) - 1
        run = (begins | (place[:size] % _RUN == 0)).long().cumsum(0)
        # Starts of groups and runs; numbers that do not occur start at the end.
        group_from, run_from = torch.searchsorted(number, place), torch.searchsorted(run, place + 1)
        runs_before = torch.cat([torch.zeros_like(run[:1]), run])[group_from]
        return cls(
            order=order,
            number=number,
            of_candidate=torch.empty_like(order).scatter(0, order, number),
            run_lengths=run_from.diff(),
            runs=runs_before.diff(),
        )

    def sums(self, values: Tensor) -> Tensor:
        """Sums of values (M, ...) by group: (M, ...), zeros after the last group.

        One thread sums each run, then one thread sums the runs of each group. Unlike index_add on a GPU, this gives the
        same bits every time. Unlike index_put, it neither waits for the host nor sums a group in one thread. Lengths
        are not checked, since a check would wait for the device.
        """
        total = values[self.order]
        for lengths in (self.run_lengths, self.runs):
            total = torch.segment_reduce(total, "sum", lengths=lengths, axis=0, unsafe=True)
        return total


def _spread_envelope(
    anchor_scores: Tensor, anchor_cell: Tensor | None, scores: Tensor, cells: _Cells | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """t (M,) and (alpha + beta) / 2 of every anchor (A,), both float64, with a centre for each group or one for all."""
    # In double precision throughout: every backend must get the same slots.
    tiny = torch.finfo(torch.float64).tiny

    number = None if cells is None else cells.of_candidate

    def sums(values: Tensor) -> Tensor:
        return values.sum(0, keepdim=True) if cells is None else cells.sums(values)

    mass = sums(weight).clamp_min(tiny)
    centre = sums(scores * (weight / _by_cell(mass, number))[:, None])
    distance = _squared_distance(scores, _by_cell(centre, number))
    beta = sums(distance * weight) / mass
    beta = torch.where(beta > _ALIKE, beta, _ALIKE_BETA)
    alpha = _squared_distance(anchor_scores, _by_cell(centre, anchor_cell))
    return distance / _by_cell(beta, number), (alpha + _by_cell(beta, anchor_cell)) / 2


def _by_cell(values: Tensor, number: Tensor | None) -> Tensor:
    """The values of the cells with these numbers; without numbers, the value of the only cell, to be broadcast."""
    return values if number is None else values.index_select(0, number)


def _squared_distance(scores: Tensor, centre: Tensor) -> Tensor:
    """Squared distance, float64, of every row of scores from its own centre or from a shared one."""
    return (centre - scores).square_().sum(1)
