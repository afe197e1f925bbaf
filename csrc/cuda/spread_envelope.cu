// Centres of cells, and the squared distances from them, for the tables of slots. Every sum has a fixed order, so every
// run gives the same bits.
#include "cuda/places.h"
#include "cuda/storage.h"

namespace sskd_fast::cuda {
namespace {

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
      if (part < 0)
        m.centre[cell * rows.width + column] = sum / larger(mass, kTiny);
      else
        m.part_rows[part * rows.width + column] = sum;
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
        if (part < 0)
          m.beta[cell] = beta_of(moment, mass);
        else
          m.part_moment[part] = moment;
      }
      begin = run.end;
    }
  }
  longest = of_block<false>(longest);
  if (threadIdx.x == 0) m.longest[block] = longest;
}

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

#define SSKD_INSTANTIATE(S) \
  template void launch_envelope<S>(const TableMemory&, const Rows<S>&, const Rows<S>&, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)

}  // namespace sskd_fast::cuda
