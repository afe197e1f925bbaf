"""Rows as tensor cores multiply them: sums of float16 numbers, written once for all tiles that read them.

A float32 number is the sum of two float16 numbers, which hold 22 of its 24 bits: as many as two of TF32, at twice their
rate. Numbers of half precision need one. A power of two brings the largest number of a row to about 2^13, so that small
ones are rounded below 2^-38 of it only. float64 rows are multiplied as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._tl import device_of, gathered_rows, inverse_norm, padded_rows, row_columns, row_sums

# Rows and columns of the largest tile; every block of rows divides it.
TILE = 128


@triton.jit
def powers_of_two(largest):
    """The power of two that brings float32 numbers of at most `largest` to at most 2^14, and its inverse."""
    exponent = tl.maximum((largest.to(tl.int32, bitcast=True) >> 23) - 127, -100)
    return ((140 - exponent) << 23).to(tl.float32, bitcast=True), ((114 + exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def expected_pixel_contrast_parts_kernel(
    x_ptr, largest_ptr, weight_ptr, parts_ptr, factor_ptr, inverse_ptr, half_ptr, rows,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, PART_WIDTH: tl.constexpr, SCORES: tl.constexpr, NORMALIZE: tl.constexpr,
    WEIGHTED: tl.constexpr, BY_ROWS: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """parts (rows, PARTS PART_WIDTH) and half; of embeddings, factor and 1 / norm too. half of embeddings is 1.

    The power of two is that of a row if BY_ROWS, else that of `largest`, and the parts are those of unit rows.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    columns = row_columns(CHUNKS, COLUMNS)
    inside = i < rows
    x = gathered_rows(x_ptr, i, inside, columns, WIDTH)
    WIDE: tl.constexpr = parts_ptr.dtype.element_ty == tl.float64
    up, down = tl.full([BLOCK_A], 1.0, x.dtype), tl.full([BLOCK_A], 1.0, x.dtype)
    half, inverse = up, up
    if SCORES:
        half = row_sums(x * x) * 0.5
    elif NORMALIZE:
        inverse = inverse_norm(row_sums(x * x))
    if not WIDE:
        if BY_ROWS:
            up, down = powers_of_two(tl.max(tl.max(tl.abs(x), axis=0), axis=1))
            down *= inverse
        else:
            up, down = powers_of_two(tl.load(largest_ptr + tl.zeros([BLOCK_A], tl.int32)))
            up *= inverse
    else:
        up *= inverse
    if not SCORES:
        tl.store(factor_ptr + i, down)
        tl.store(inverse_ptr + i, inverse, mask=inside)
    counted = inside
    if WEIGHTED:
        counted = inside & (tl.load(weight_ptr + i, mask=inside, other=0.0) > 0)
    tl.store(half_ptr + i, tl.where(counted, half, float("-inf")))
    x *= up[None, :, None]
    out = i[None, :, None] * (PARTS * PART_WIDTH) + columns
    mask = inside[None, :, None] & (columns < PART_WIDTH)
    first = x.to(parts_ptr.dtype.element_ty)
    tl.store(parts_ptr + out, first, mask=mask)
    if PARTS == 2:
        tl.store(parts_ptr + out + PART_WIDTH, (x - first.to(x.dtype)).to(parts_ptr.dtype.element_ty), mask=mask)


def whole_tiles(rows: Tensor) -> Tensor:
    """rows (N,) with zeros up to a whole number of tiles, so that kernels read them without a mask."""
    missing = -len(rows) % TILE if len(rows) else TILE
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows.contiguous()


class Parts:
    """Rows (N, W) in parts: `parts` (N, count width), with zeros behind the W numbers of each part.

    block: numbers of a row that are multiplied at a time; width is a whole number of them. half (whole tiles): of rows
    outside or of weight 0 (weight (N,) or None), -inf.
    """

    def __init__(self, rows: Tensor, block: int, weight: Tensor | None) -> None:
        size, given = rows.shape
        self.rows, self.block, self.weight = padded_rows(rows), block, weight
        self.count = 2 if rows.dtype == torch.float32 else 1
        self.width = -(-max(1, given) // block) * block
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float16
        # A descriptor needs a row.
        self.parts = torch.empty(max(1, size), self.count * self.width, dtype=dtype, device=rows.device)
        self.tiles = max(1, triton.cdiv(size, TILE)) * TILE
        self.numbers = torch.promote_types(rows.dtype, torch.float32)
        self.half = self._vector(self.tiles)

    def _vector(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.numbers, device=self.rows.device)

    def _largest(self) -> Tensor:
        """The largest absolute value, a number."""
        if self.rows.numel() == 0:
            return self.half.new_zeros(())
        return torch.linalg.vector_norm(self.rows, float("inf"), dtype=self.numbers)

    def _written(
        self, largest: Tensor, factor: Tensor, inverse: Tensor, scores: bool, normalize: bool, by_rows: bool
    ) -> None:
        config = _tuning.rows_backward(self.width, self.numbers)
        weight = largest if self.weight is None else self.weight.contiguous()
        with device_of(self.rows):
            expected_pixel_contrast_parts_kernel[(self.tiles // config["BLOCK_A"],)](
                self.rows, largest, weight, self.parts, factor, inverse, self.half, len(self.rows),
                WIDTH=self.rows.shape[1], PARTS=self.count, PART_WIDTH=self.width, SCORES=scores, NORMALIZE=normalize,
                WEIGHTED=self.weight is not None, BY_ROWS=by_rows, **config,
            )  # fmt: skip

    def panels(self, rows: int, tensor_copies: bool, columns: int | None = None) -> Any:
        """The parts as kernels read them, `rows` x `columns` (a block of numbers) at a time."""
        if not tensor_copies:
            return self.parts
        return TensorDescriptor.from_tensor(self.parts, [rows, columns or self.block])


class Embeddings(Parts):
    """Embeddings in parts. factor (whole tiles): turns a product with parts of a row into one with the row.

    by_rows: True if the factors differ, as they do if rows of half precision are normalized: only then are their
    numbers exact. inverse (N,): 1 / norm, or 1 if not normalized. half: 1.
    """

    def __init__(self, rows: Tensor, block: int, normalize: bool, weight: Tensor | None = None) -> None:
        super().__init__(rows, block, weight)
        self.by_rows = normalize and rows.dtype.itemsize == 2
        self.factor, self.inverse = self._vector(self.tiles), self._vector(len(rows))
        largest = self.half.new_ones(()) if normalize else self._largest()
        self._written(largest, self.factor, self.inverse, False, normalize, self.by_rows)


class Scores(Parts):
    """Scores (N, E) in parts, all by one power of two. half: half the square of a row; largest: of all numbers."""

    def __init__(self, rows: Tensor, block: int, weight: Tensor | None = None) -> None:
        super().__init__(rows, block, weight)
        self.largest = self._largest()
        self._written(self.largest, self.half, self.half, True, False, False)


@dataclass(frozen=True)
class Side:
    """Anchors or candidates in parts. group and weight are vectors of whole tiles, None if absent."""

    embeddings: Embeddings
    scores: Scores | None
    group: Tensor | None
    weight: Tensor | None

    def operands(self, rows: int, tensor_copies: bool) -> tuple[Any, Any, Tensor, Tensor, Tensor, Tensor]:
        """Embeddings and scores as kernels read them, `rows` at a time, and four vectors.

        These are half, the largest score, the groups, and the lowest and the highest group of every `rows` (tiles, 2).
        A vector stands in for what is absent.
        """
        x, scores, group = self.embeddings, self.scores, self.group
        panels, half, largest = x.factor, x.half, x.half
        if scores is not None:
            panels, half, largest = scores.panels(rows, tensor_copies), scores.half, scores.largest
        ids = spans = x.factor
        if group is not None:
            ids, spans = group, torch.stack(torch.aminmax(group.view(-1, rows), dim=1), dim=1)
        return x.panels(rows, tensor_copies), panels, half, largest, ids, spans

    def constants(self) -> dict[str, int]:
        """The shapes of the parts."""
        x, scores = self.embeddings, self.scores
        return {
            "BY_ROWS": x.by_rows,
            "PARTS": x.count,
            "PART_WIDTH": x.width,
            "BLOCK_W": x.block,
            "SCORE_PARTS": scores.count if scores else 1,
            "SCORE_WIDTH": scores.width if scores else 0,
            "BLOCK_S": scores.block if scores else 0,
        }

    def panel_counts(self) -> tuple[int, int]:
        """The numbers of panels in which embeddings and scores are multiplied."""
        x, scores = self.embeddings, self.scores
        return x.width // x.block, scores.width // scores.block if scores else 0


def operands(own: Side, other: Side, config: Mapping[str, Any]) -> list[Any]:
    """The operands of both sides in turn, for kernels with BLOCK_I rows of `own` and BLOCK_J of `other` in a tile."""
    copies = config["TENSOR_COPIES"]
    pairs = zip(own.operands(config["BLOCK_I"], copies), other.operands(config["BLOCK_J"], copies), strict=True)
    return [operand for pair in pairs for operand in pair]


def sides(
    anchors: Tensor,
    candidates: Tensor,
    scores: tuple[Tensor | None, Tensor | None],
    groups: tuple[Tensor | None, Tensor | None],
    weight: Tensor | None,
    normalize: bool,
) -> tuple[Side, Side]:
    """Anchors and candidates: embeddings and scores minus the candidates' centre, in parts."""
    block, own, other = _tuning.panel(anchors.shape[1]), None, None
    if scores[0] is not None and scores[1] is not None:
        centre = scores[1].contiguous().sum(0) / max(1, len(scores[1]))
        score_block = _tuning.panel(centre.shape[0])
        own, other = Scores(scores[0] - centre, score_block), Scores(scores[1] - centre, score_block, weight)
    group, candidate_group = (None if x is None else whole_tiles(x) for x in groups)
    whole = None if weight is None else whole_tiles(weight)
    return (
        Side(Embeddings(anchors, block, normalize), own, group, None),
        Side(Embeddings(candidates, block, normalize, weight), other, candidate_group, whole),
    )
