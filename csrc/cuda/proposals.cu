// The tables of slots for negative sampling on the GPU. Every sum has a fixed order, so every run gives the same bits.
#include "cuda/proposals.h"

#include <cmath>

#include "cuda/rows.h"
#include "cuda/storage.h"
#include "math/negative_sampling.h"

namespace sskd_fast::cuda {

SSKD_HOST_DEVICE int64_t TableMemory::most_slots() const { return (kSlots + 1) * candidates.count; }

namespace {

constexpr double kTiny = 2.2250738585072014e-308;  // the smallest normal number

__device__ inline int own_warp() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline double larger(double x, double y) { return x > y ? x : y; }

// Sum or maximum over the threads of a block, for all of them.
template <bool sums>
__device__ inline double of_block(double x) {
  SSKD_SHARED(double, warps, [kRowWarps]);
  x = sums ? lanes_sum(x) : warp_max(x);
  __syncthreads();  // the last call's numbers have been read
  if (own_lane() == 0) warps[own_warp()] = x;
  __syncthreads();
  x = warps[0];
  for (int warp = 1; warp < kRowWarps; ++warp) x = sums ? x + warps[warp] : larger(x, warps[warp]);
  return x;
}

// The largest of `count` numbers, at least 0.
__device__ inline double largest_of(const double* numbers, int64_t count) {
  double x = 0;
  for (int64_t i = threadIdx.x; i < count; i += kRowThreads) x = larger(x, numbers[i]);
  return of_block<false>(x);
}

__device__ inline int64_t candidate_at(const TableMemory& m, int64_t place) {
  return m.order == nullptr ? place : m.order[place];
}
__device__ inline int64_t cell_at(const TableMemory& m, int64_t place) {
  return m.start == nullptr ? 0 : m.start[place];
}
__device__ inline double weight_of(const TableMemory& m, int64_t q) { return m.weighted() ? m.weight[q] : 1; }

// Mean squared distance from the centre, or what takes its place for rows that are alike.
__device__ inline double beta_of(double moment, double mass) {
  const double mean = moment / larger(mass, kTiny);
  return mean > kAlike ? mean : kAlikeBeta;
}

// The places of a block, or of one of its cells.
struct Run {
  int64_t begin, end;
};

__device__ inline Run run_of(const Blocks& blocks, int64_t block) {
  const int64_t begin = block * blocks.length;
  return {begin, begin + blocks.length < blocks.count ? begin + blocks.length : blocks.count};
}

// The places from `begin` on that have its cell.
__device__ inline Run run_of_cell(const TableMemory& m, int64_t begin, int64_t end) {
  if (m.start == nullptr) return {begin, end};
  int64_t low = begin + 1, high = end;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (m.start[middle] == m.start[begin]) low = middle + 1;
    else high = middle;
  }
  return {begin, low};
}

// The part that a block's run of a cell belongs to; -1 for a cell that is whole.
__device__ inline int64_t part_of(const Run& all, const Run& run, int64_t cell, int64_t block) {
  return cell < all.begin ? 2 * block : run.end == all.end ? 2 * block + 1 : -1;
}

// Adds up the sums of the warps, one number for each lane; the result is in the first warp.
__device__ inline double of_warps(double x, double (&sums)[kRowWarps][kWarp]) {
  __syncthreads();
  sums[own_warp()][own_lane()] = x;
  __syncthreads();
  x = sums[0][own_lane()];
  for (int warp = 1; warp < kRowWarps; ++warp) x += sums[warp][own_lane()];
  return x;
}

// Weighted sums of rows by cell: a lane has a column, and the warps share the rows.
template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) negative_sampling_sums_kernel(TableMemory m, Rows<S> rows) {
  SSKD_SHARED(double, sums, [kRowWarps][kWarp]);
  const int64_t block = blockIdx.x, column = int64_t{blockIdx.y} * kWarp + own_lane();
  const bool leads = blockIdx.y == 0 && threadIdx.x == 0, inside = column < rows.width;
  const Run all = run_of(m.candidates, block);
  if (leads) m.part_cell[2 * block] = m.part_cell[2 * block + 1] = -1;
  for (int64_t begin = all.begin; begin < all.end;) {
    const Run run = run_of_cell(m, begin, all.end);
    const int64_t cell = cell_at(m, begin), part = part_of(all, run, cell, block);
    double sum = 0, mass = 0;
    for (int64_t place = run.begin + own_warp(); place < run.end; place += kRowWarps) {
      const int64_t q = candidate_at(m, place);
      const double weight = weight_of(m, q);
      mass += weight;
      if (inside) sum += weight * static_cast<double>(widen(rows.row(q)[column]));
    }
    sum = of_warps(sum, sums), mass = of_warps(mass, sums);
    if (own_warp() == 0 && inside) {
      if (part < 0) m.centre[cell * rows.width + column] = sum / larger(mass, kTiny);
      else m.part_rows[part * rows.width + column] = sum;
    }
    if (leads && part >= 0) m.part_mass[part] = mass, m.part_cell[part] = cell;
    begin = run.end;
  }
}

// The centre of the cell that may go on beyond the block in which it began.
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    negative_sampling_centres_kernel(TableMemory m, int64_t width) {
  SSKD_SHARED(double, sums, [kRowWarps][kWarp]);
  const int64_t first = 2 * int64_t{blockIdx.x} + 1, column = int64_t{blockIdx.y} * kWarp + own_lane();
  const int64_t cell = m.part_cell[first];
  if (cell < 0) return;  // the whole block
  double sum = 0, mass = 0;
  for (int64_t part = first + own_warp(); part < 2 * m.candidates.blocks; part += kRowWarps) {
    if (m.part_cell[part] != cell) continue;
    mass += m.part_mass[part];
    if (column < width) sum += m.part_rows[part * width + column];
  }
  sum = of_warps(sum, sums), mass = of_warps(mass, sums);
  if (own_warp() == 0 && column < width) m.centre[cell * width + column] = sum / larger(mass, kTiny);
}

// Squared distance of a row from a centre and squared norm, by a warp.
template <typename S>
__device__ inline double distance_of(const S* row, const double* centre, int32_t packs, double& norm) {
  double distance = 0, square = 0;
#pragma unroll 1
  for (int32_t pack = own_lane(); pack < packs; pack += kWarp) {
    Compute<S> x[kPack<S>];
    load_pack<S>(row + int64_t{pack} * kPack<S>, x);
#pragma unroll
    for (int i = 0; i < kPack<S>; ++i) {
      const double value = x[i], away = value - centre[int64_t{pack} * kPack<S> + i];
      distance += away * away, square += value * value;
    }
  }
  norm = lanes_sum(square);
  return lanes_sum(distance);
}

// Squared distances from the centres: of the candidates with their sums by cell, then of the anchors; a row a warp.
template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    negative_sampling_distances_kernel(TableMemory m, Rows<S> anchors, Rows<S> rows) {
  const int64_t block = blockIdx.x;
  double longest = 0, norm;
  if (block >= m.candidates.blocks) {
    const Run all = run_of(m.anchors, block - m.candidates.blocks);
    for (int64_t anchor = all.begin + own_warp(); anchor < all.end; anchor += kRowWarps) {
      const int64_t own = m.start == nullptr ? 0 : m.own_from[anchor];
      const int64_t cell = cell_at(m, own < m.candidates.count ? own : m.candidates.count - 1);
      const double alpha = distance_of(anchors.row(anchor), m.centre + cell * rows.width, rows.packs(), norm);
      if (own_lane() == 0) m.alpha[anchor] = alpha;
      longest = larger(longest, norm);
    }
  } else {
    const Run all = run_of(m.candidates, block);
    for (int64_t begin = all.begin; begin < all.end;) {
      const Run run = run_of_cell(m, begin, all.end);
      const int64_t cell = cell_at(m, begin), part = part_of(all, run, cell, block);
      double moment = 0, mass = 0;
      for (int64_t place = run.begin + own_warp(); place < run.end; place += kRowWarps) {
        const int64_t q = candidate_at(m, place);
        const double distance = distance_of(rows.row(q), m.centre + cell * rows.width, rows.packs(), norm);
        longest = larger(longest, norm);
        if (own_lane() != 0) continue;
        m.distance[place] = distance;
        moment += distance * weight_of(m, q), mass += weight_of(m, q);
      }
      moment = of_block<true>(moment), mass = of_block<true>(mass);
      if (threadIdx.x == 0) {
        if (part < 0) m.beta[cell] = beta_of(moment, mass);
        else m.part_moment[part] = moment;
      }
      begin = run.end;
    }
  }
  longest = of_block<false>(longest);
  if (threadIdx.x == 0) m.longest[block] = longest;
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

// counts by place: slots in the even table if weighted, in the spread one if scored, 1 for a weight above 0 if weighted.
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
    if (before(m, row, middle + 1) <= slot) low = middle + 1;
    else high = middle;
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

dim3 grid_of(int64_t blocks, int64_t lines = 1) {
  return dim3{static_cast<unsigned int>(blocks), static_cast<unsigned int>(lines), 1};
}
constexpr dim3 kBlock{kRowThreads, 1, 1};

}  // namespace

template <typename S>
void launch_envelope(const TableMemory& m, const Rows<S>& anchors, const Rows<S>& candidates, Stream stream) {
  const int64_t blocks = m.candidates.blocks, lines = (candidates.width + kWarp - 1) / kWarp;
  launch(negative_sampling_sums_kernel<S>, grid_of(blocks, lines), kBlock, 0, stream, m, candidates);
  launch(negative_sampling_centres_kernel, grid_of(m.start == nullptr ? 1 : blocks, lines), kBlock, 0, stream, m,
         candidates.width);
  launch(negative_sampling_distances_kernel<S>, grid_of(blocks + m.anchors.blocks), kBlock, 0, stream, m, anchors,
         candidates);
}

void launch_slots(const TableMemory& m, Stream stream) {
  launch(negative_sampling_slots_kernel, grid_of(m.candidates.blocks), kBlock, 0, stream, m);
}

void launch_layout(const TableMemory& m, Stream stream) {
  const int64_t tables = (m.weighted() ? 1 : 0) + (m.scored ? 1 : 0);
  const int64_t blocks =
      blocks_for(m.anchors.count) + blocks_for(m.candidates.count) + tables * blocks_for(m.most_slots());
  launch(negative_sampling_layout_kernel, grid_of(blocks), kBlock, 0, stream, m);
}

#define SSKD_INSTANTIATE(S) \
  template void launch_envelope<S>(const TableMemory&, const Rows<S>&, const Rows<S>&, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)

}  // namespace sskd_fast::cuda
