// Places, their cells and parts of cells, for the kernels that build the tables of slots; see proposals.h.
#pragma once

#include <cstdint>

#include "cuda/proposals.h"
#include "cuda/rows.h"
#include "math/negative_sampling.h"

namespace sskd_fast::cuda {

constexpr double kTiny = 2.2250738585072014e-308;  // the smallest normal number

__device__ inline int own_warp() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline double larger(double x, double y) { return x > y ? x : y; }

// Sum or maximum over the threads of a block, for all of them.
template <bool sums>
__device__ inline double of_block(double x) {
  SSKD_SHARED(double, warps, [kRowWarps]);
  x = sums ? lanes_sum(x) : groups_max<1>(x);
  __syncthreads();  // the last call's numbers have been read
  if (own_lane() == 0) warps[own_warp()] = x;
  __syncthreads();
  x = warps[0];
  for (int warp = 1; warp < kRowWarps; ++warp) x = sums ? x + warps[warp] : larger(x, warps[warp]);
  return x;
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
    if (m.start[middle] == m.start[begin])
      low = middle + 1;
    else
      high = middle;
  }
  return {begin, low};
}

// The part that a block's run of a cell belongs to; -1 for a cell that is whole.
__device__ inline int64_t part_of(const Run& all, const Run& run, int64_t cell, int64_t block) {
  return cell < all.begin ? 2 * block : run.end == all.end ? 2 * block + 1 : -1;
}

inline dim3 grid_of(int64_t blocks, int64_t lines = 1) {
  return dim3{static_cast<unsigned int>(blocks), static_cast<unsigned int>(lines), 1};
}
constexpr dim3 kBlock{kRowThreads, 1, 1};

}  // namespace sskd_fast::cuda
