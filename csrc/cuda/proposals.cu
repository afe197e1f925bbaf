// The tables of slots for negative sampling on the GPU: numbers of slots, and what follows from them.
#include <cmath>

#include "cuda/places.h"

namespace sskd_fast::cuda {
namespace {

// The largest of `count` numbers, at least 0.
__device__ inline double largest_of(const double* numbers, int64_t count) {
  double x = 0;
  for (int64_t i = threadIdx.x; i < count; i += kRowThreads) x = larger(x, numbers[i]);
  return of_block<false>(x);
}

// beta of the cell whose parts the block has; meaningless for cell -1.
__device__ inline double beta_of_parts(const TableMemory& m, int64_t cell) {
  double moment = 0, mass = 0;
  for (int64_t part = threadIdx.x; part < 2 * m.candidates.blocks; part += kRowThreads)
    if (cell >= 0 && m.part_cell[part] == cell) moment += m.part_moment[part], mass += m.part_mass[part];
  moment = of_block<true>(moment);
  return beta_of(moment, of_block<true>(mass));
}

// A number of slots, at least proportional to the mass, kSlots for the mean; 0 for mass 0.
__device__ inline double slots_of(double mass, double mean) {
  const double scale = kSlots / larger(mean, kTiny);
  return mass > 0 ? larger(std::ceil(mass * scale * (1 - kSlotSlack)), 1) : 0;
}

// counts by place: slots in the even table if weighted, in the spread one if scored, 1 for a weight above 0 if
// weighted.
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) negative_sampling_slots_kernel(TableMemory m) {
  const int64_t block = blockIdx.x, size = m.candidates.count;
  const Run all = run_of(m.candidates, block);
  const double mean = m.weighted() ? *m.mean_weight : 1;
  int64_t earlier = -1, later = -1;
  double earlier_beta = 1, later_beta = 1, even_unit = 0, unit = 0;
  if (m.scored) {
    earlier = m.part_cell[2 * block], later = m.part_cell[2 * block + 1];
    earlier_beta = beta_of_parts(m, earlier), later_beta = beta_of_parts(m, later);
    if (later >= 0 && threadIdx.x == 0) m.beta[later] = later_beta;
  }
  for (int64_t place = all.begin + threadIdx.x; place < all.end; place += kRowThreads) {
    const double weight = weight_of(m, candidate_at(m, place));
    int32_t* counts = m.counts + place;
    if (m.weighted()) {
      const double slots = slots_of(weight, mean);
      even_unit = larger(even_unit, weight / larger(slots, 1));
      *counts = static_cast<int32_t>(slots);
      counts += size;
    }
    if (m.scored) {
      const int64_t cell = cell_at(m, place);
      const double beta = cell == later ? later_beta : cell == earlier ? earlier_beta : m.beta[cell];
      const double mass = weight * (1 + m.distance[place] / beta), slots = slots_of(mass, 2 * mean);
      unit = larger(unit, mass / larger(slots, 1));
      *counts = static_cast<int32_t>(slots);
      counts += size;
    }
    if (m.weighted()) *counts = weight > 0;
  }
  even_unit = of_block<false>(even_unit), unit = of_block<false>(unit);
  if (threadIdx.x == 0) m.unit[block] = even_unit, m.unit[m.candidates.blocks + block] = unit;
}

// Sum of a row of counts over the places before `place`.
__device__ inline int64_t before(const TableMemory& m, int row, int64_t place) {
  const int64_t* sums = m.sums + row * m.candidates.count;
  return (row + place > 0 ? sums[place - 1] : 0) - (row > 0 ? sums[-1] : 0);
}

__device__ inline void lay_out_anchor(const TableMemory& m, int64_t anchor, double longest) {
  const int64_t size = m.candidates.count;
  if (m.one_group) {
    m.own_from[anchor] = 0;
    m.own_until[anchor] = m.anchor_group[anchor * m.anchor_group_stride] == *m.candidate_group ? size : 0;
  }
  const int64_t from = m.own_from[anchor], until = m.own_until[anchor];
  bool spread = false;
  double bound = 1;
  if (m.scored) {
    const double half = (m.alpha[anchor] + m.beta[cell_at(m, from < size ? from : size - 1)]) / 2;
    spread = half < kEvenFrom;
    bound = spread ? half * kEnvelopeMargin : larger(longest / 2, 1);
  }
  int64_t total = size, first = from, own = until - from, every = size, available = own;
  const int row = spread && m.weighted() ? 1 : 0;
  if (spread || m.weighted())
    total = before(m, row, size), first = before(m, row, from), own = before(m, row, until) - first;
  if (m.weighted()) {
    const int positive = m.scored ? 2 : 1;
    every = before(m, positive, size), available = before(m, positive, until) - before(m, positive, from);
  }
  const int64_t base = spread ? m.even_slots() : 0;
  m.bound[anchor] = bound;
  m.table[anchor] = spread ? size : 0;
  m.first[anchor] = m.same ? first + base : base;
  m.count[anchor] = m.same ? own : total - own;
  m.skip_from[anchor] = m.same ? total : first;
  m.skip_length[anchor] = m.same ? 0 : own;
  m.available[anchor] = m.same ? available : every - available;
}

__device__ inline void lay_out_candidate(const TableMemory& m, int64_t place, double even_unit, double unit) {
  const int64_t size = m.candidates.count, q = candidate_at(m, place);
  const double weight = weight_of(m, q);
  const auto ratio = [&](int row, double largest) {
    const int32_t slots = m.counts[row * size + place];
    return weight / ((slots > 1 ? slots : 1) * larger(largest, kTiny));
  };
  m.places[place] = static_cast<int32_t>(q);
  if (!m.weighted()) m.entries[place] = static_cast<int32_t>(q);
  m.ratio[q] = m.weighted() ? ratio(0, even_unit) : 1;
  if (m.scored) m.ratio[size + q] = ratio(m.weighted() ? 1 : 0, unit);
}

// The candidate of a slot of the table with this row of counts: the first whose slots end after it.
__device__ inline void lay_out_slot(const TableMemory& m, int row, int64_t slot, int32_t* entries) {
  if (slot >= before(m, row, m.candidates.count)) return;
  int64_t low = 0, high = m.candidates.count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (before(m, row, middle + 1) <= slot)
      low = middle + 1;
    else
      high = middle;
  }
  entries[slot] = static_cast<int32_t>(candidate_at(m, low));
}

__device__ __host__ inline int64_t blocks_for(int64_t rows) { return (rows + kRowThreads - 1) / kRowThreads; }

// Blocks for the anchors, then for the candidates, then for the slots of each table that is more than the order.
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) negative_sampling_layout_kernel(TableMemory m) {
  const int64_t blocks = m.candidates.blocks;
  int64_t block = blockIdx.x;
  if (block < blocks_for(m.anchors.count)) {
    double longest = 0;
    if (m.scored) longest = largest_of(m.longest, blocks) + largest_of(m.longest + blocks, m.anchors.blocks);
    const int64_t anchor = block * kRowThreads + threadIdx.x;
    if (anchor < m.anchors.count) lay_out_anchor(m, anchor, longest);
    return;
  }
  block -= blocks_for(m.anchors.count);
  if (block < blocks_for(m.candidates.count)) {
    const double even_unit = m.weighted() ? largest_of(m.unit, blocks) : 0;
    const double unit = m.scored ? largest_of(m.unit + blocks, blocks) : 0;
    const int64_t place = block * kRowThreads + threadIdx.x;
    if (place < m.candidates.count) lay_out_candidate(m, place, even_unit, unit);
    return;
  }
  block -= blocks_for(m.candidates.count);
  const int row = block >= blocks_for(m.most_slots()) ? 1 : 0;
  const bool spread = row == 1 || !m.weighted();
  const int64_t slot = (block - row * blocks_for(m.most_slots())) * kRowThreads + threadIdx.x;
  lay_out_slot(m, row, slot, m.entries + (spread ? m.even_slots() : 0));
}

}  // namespace

void launch_slots(const TableMemory& m, Stream stream) {
  launch(negative_sampling_slots_kernel, grid_of(m.candidates.blocks), kBlock, 0, stream, m);
}

void launch_layout(const TableMemory& m, Stream stream) {
  const int64_t tables = (m.weighted() ? 1 : 0) + (m.scored ? 1 : 0);
  const int64_t blocks =
      blocks_for(m.anchors.count) + blocks_for(m.candidates.count) + tables * blocks_for(m.most_slots());
  launch(negative_sampling_layout_kernel, grid_of(blocks), kBlock, 0, stream, m);
}

}  // namespace sskd_fast::cuda
