// The tables of slots for negative sampling on the GPU: launchers on raw pointers. The same tables as `build_proposals`
// of sskd_fast/reference/proposals.py, up to the order in which float64 numbers are summed.
//
// A place is a position in the order of the candidates by group. A block is a run of places that one thread block
// reads; there are at most kMostBlocks. A cell is the places with a common centre, and goes by its first place: a group
// with scope "same", else everything. A cell that begins and ends inside a block is summed by it. Other cells are
// summed in parts: number 2 * block of a cell that began earlier, number 2 * block + 1 of one that may go on.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/numbers.h"
#include "math/negative_sampling.h"

namespace sskd_fast::cuda {

constexpr int64_t kMostBlocks = 512, kShortestBlock = 32;

// `count` rows in blocks of `length`.
struct Blocks {
  int64_t count, length, blocks;
};

struct TableMemory {
  Blocks candidates, anchors;
  bool same, scored, one_group;
  const int64_t* order;                           // candidates by group; null: in their own order
  const int64_t* start;                           // the cell of each place; null: a single one
  const double *weight, *mean_weight;             // null: 1 each
  const int64_t *anchor_group, *candidate_group;  // read if there is one group only
  int64_t anchor_group_stride;
  // Working memory. By part: sums of rows, of weights and of distances, and the cell, -1 if not used. By cell: centre
  // and mean squared distance. By place and by anchor: squared distances. By block: the largest squared norms, and the
  // largest mass of a slot in either table. counts, sums: rows of M numbers, see slots_kernel.
  double *part_rows, *part_mass, *part_moment;
  int64_t* part_cell;
  double *centre, *beta, *distance, *alpha, *longest, *unit;
  int32_t* counts;
  const int64_t* sums;
  // The tables, see `Proposals`. own_from, own_until are given unless there is one group only.
  int32_t *entries, *places;
  double *ratio, *bound;
  int64_t *table, *first, *count, *skip_from, *skip_length, *available, *own_from, *own_until;

  SSKD_HOST_DEVICE bool weighted() const { return weight != nullptr; }
  SSKD_HOST_DEVICE int64_t most_slots() const { return (kSlots + 1) * candidates.count; }
  SSKD_HOST_DEVICE int64_t even_slots() const { return weighted() ? most_slots() : candidates.count; }
};

// Centres, distances and norms; in spread_envelope.cu.
template <typename S>
void launch_envelope(const TableMemory& memory, const Rows<S>& anchors, const Rows<S>& candidates, Stream stream);

// counts and unit, and the rest of beta.
void launch_slots(const TableMemory& memory, Stream stream);

// The tables, once sums has the cumulative sums of counts.
void launch_layout(const TableMemory& memory, Stream stream);

}  // namespace sskd_fast::cuda
