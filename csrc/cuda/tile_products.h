// Products of tiles of 64 x 64 by a block of 256 threads, for the expected form of pixel contrast:
//
//   multiply     tile (64, 64) += rows (64, depth) columns (64, depth)^T, both in shared memory
//   accumulate   out (64, kSlice) += factors (64, 16 of 64) x (16, kSlice), both in shared memory
//
// TensorCores stores a number as a sum of bfloat16 parts: bfloat16 as one, float16 exactly as two, float32 exactly as
// three. Products of parts are exact in float32; products below the precision of float32 are left out. Fma multiplies
// doubles one by one. Both define which entries of a tile belong to a thread.
#pragma once

#include <cstdint>

#include "common/half_precision.h"
#include "cuda/async_copy.h"
#include "cuda/device.h"
#include "cuda/expected_pixel_contrast.h"
#include "cuda/tensor_cores.h"

namespace sskd_fast::cuda {

constexpr int kTileThreads = 256;
constexpr int kFactorDepth = 16;  // columns of the factors in one step of accumulate

// True if the product of part p of one number and part q of another counts, for numbers of `parts` parts.
SSKD_HOST_DEVICE constexpr bool counts(int p, int q, int parts) { return p + q < (parts < 3 ? 3 : parts); }

struct TensorCores {
  using Number = float;
  using Element = BFloat16;
    static constexpr int kDepth = kPartDepth<float>, kSlice = 256;
  // Padded by eight, so that the rows of a fragment are in different banks.
  static constexpr int kDepthStride = kDepth + 8, kSliceStride = kSlice + 8, kFactorStride = kTile + 8;
  static constexpr int kOwnRows = 2, kOwnColumns = 8, kSliceColumns = 32;
  static constexpr int kSharers = 8;  // threads that have entries of the same row

  // Eight warps in four rows and two columns; each loops over fragments of 8 columns.
  template <int columns>
  struct Fragments {
    float fragment[columns / 2][4] = {};
    __device__ float& at(int i, int j) { return fragment[j / 2][2 * i + j % 2]; }
  };
  using Tile = Fragments<kOwnColumns>;
  using Slice = Fragments<kSliceColumns>;

  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static int warp_row() { return static_cast<int>(threadIdx.x / 32 % 4); }
  __device__ static int warp_column() { return static_cast<int>(threadIdx.x / 128); }
  __device__ static int row(int i) { return warp_row() * 16 + lane() / 4 + 8 * i; }
  __device__ static int column(int j) { return warp_column() * 32 + j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  __device__ static int slice_column(int j) { return warp_column() * 128 + j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  __device__ static int sharer() { return warp_column() * 4 + lane() % 4; }

  template <int count>
  __device__ static void split(float x, BFloat16 (&out)[count]) {
#pragma unroll
    for (int p = 0; p < count; ++p) {
      out[p] = narrow<BFloat16>(x);
      x -= widen(out[p]);
    }
  }
  template <int count>
  __device__ static float joined(const BFloat16* x, int64_t stride) {
    float sum = 0;
#pragma unroll
    for (int p = count - 1; p >= 0; --p) sum += widen(x[p * stride]);
    return sum;
  }

  // Fragments of 16 rows, and of 16 columns, from depth or factor `at` on.
  template <int count, int stride, int part_rows>
  __device__ static void load_left(const BFloat16* x, int first, int at, uint32_t (&a)[count][4]) {
#pragma unroll
    for (int p = 0; p < count; ++p)
      load_tiles<false>(a[p], x + (p * part_rows + first + lane() % 16) * stride + at + lane() / 16 * 8);
  }

  // first and second (16, 8) += the products of the parts. The products are summed separately, the smallest first, so
  // that the totals are rounded once instead of for every product.
  template <int count>
  __device__ static void multiply_fragments(const uint32_t (&a)[count][4], const uint32_t (&b)[count][4],
                                            float (&first)[4], float (&second)[4]) {
    float sums[2][4] = {};
#pragma unroll
    for (int p = count - 1; p >= 0; --p)
#pragma unroll
      for (int q = count - 1; q >= 0; --q) {
        if (!counts(p, q, count)) continue;
        const uint32_t left[2] = {b[q][0], b[q][1]}, right[2] = {b[q][2], b[q][3]};
        sskd_fast::cuda::multiply<BFloat16>(sums[0], a[p], left);
        sskd_fast::cuda::multiply<BFloat16>(sums[1], a[p], right);
      }
#pragma unroll
    for (int i = 0; i < 4; ++i) first[i] += sums[0][i], second[i] += sums[1][i];
  }

  template <int count>
  __device__ static void multiply(const BFloat16* rows, const BFloat16* columns, Tile& tile) {
#pragma unroll 1
    for (int depth = 0; depth < kDepth; depth += 16) {
      uint32_t a[count][4], b[count][4];
      load_left<count, kDepthStride, kTile>(rows, warp_row() * 16, depth, a);
#pragma unroll
      for (int j = 0; j < kOwnColumns / 4; ++j) {
        const int column = warp_column() * 32 + j * 16 + lane() / 16 * 8 + lane() % 8;
#pragma unroll
        for (int p = 0; p < count; ++p)
          load_tiles<false>(b[p], columns + (p * kTile + column) * kDepthStride + depth + lane() / 8 % 2 * 8);
        multiply_fragments<count>(a, b, tile.fragment[2 * j], tile.fragment[2 * j + 1]);
      }
    }
  }

  // Stores the factors that the thread has computed.
  template <int count>
  __device__ static void put(BFloat16* factors, Tile& tile) {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
      for (int j = 0; j < kOwnColumns; j += 2) {
        BFloat16 low[count], high[count];
        split(tile.at(i, j), low);
        split(tile.at(i, j + 1), high);
#pragma unroll
        for (int p = 0; p < count; ++p)
          *reinterpret_cast<uint32_t*>(factors + (p * kTile + row(i)) * kFactorStride + column(j)) =
              packed(low[p], high[p]);
      }
  }

  // width: number of columns in the slice; columns beyond it are not computed.
  template <int count>
  __device__ static void accumulate(const BFloat16* factors, int step, const BFloat16* x, int width, Slice& out) {
    uint32_t a[count][4], b[count][4];
    load_left<count, kFactorStride, kTile>(factors, warp_row() * 16, step * kFactorDepth, a);
#pragma unroll
    for (int j = 0; j < kSliceColumns / 4; ++j) {
      const int first = warp_column() * 128 + j * 16;
      if (first >= width) continue;  // the same for all lanes
#pragma unroll
      for (int p = 0; p < count; ++p)
        load_tiles<true>(b[p], x + (p * kFactorDepth + lane() % 16) * kSliceStride + first + lane() / 16 * 8);
      multiply_fragments<count>(a, b, out.fragment[2 * j], out.fragment[2 * j + 1]);
    }
  }
};

struct Fma {
  using Number = double;
  using Element = double;
  static constexpr int kDepth = kPartDepth<double>, kSlice = 32;
  static constexpr int kDepthStride = kDepth + 2, kSliceStride = kSlice + 2, kFactorStride = kTile + 2;
  static constexpr int kOwnRows = 4, kOwnColumns = 4, kSliceColumns = 2;
  static constexpr int kSharers = 16;

  template <int columns>
  struct Entries {
    double entry[kOwnRows][columns] = {};
    __device__ double& at(int i, int j) { return entry[i][j]; }
  };
  using Tile = Entries<kOwnColumns>;
  using Slice = Entries<kSliceColumns>;

  __device__ static int sharer() { return static_cast<int>(threadIdx.x % 16); }
  __device__ static int row(int i) { return static_cast<int>(threadIdx.x / 16) + 16 * i; }
  __device__ static int column(int j) { return sharer() + 16 * j; }
  __device__ static int slice_column(int j) { return column(j); }

  template <int count>
  __device__ static void split(double x, double (&out)[count]) {
    out[0] = x;
  }
  template <int count>
  __device__ static double joined(const double* x, int64_t /*stride*/) {
    return *x;
  }

  template <int count>
  __device__ static void multiply(const double* rows, const double* columns, Tile& tile) {
#pragma unroll 1
    for (int depth = 0; depth < kDepth; ++depth)
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
        for (int j = 0; j < kOwnColumns; ++j)
          tile.at(i, j) += rows[row(i) * kDepthStride + depth] * columns[column(j) * kDepthStride + depth];
  }

  template <int count>
  __device__ static void put(double* factors, Tile& tile) {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) factors[row(i) * kFactorStride + column(j)] = tile.at(i, j);
  }

  template <int count>
  __device__ static void accumulate(const double* factors, int step, const double* x, int /*width*/, Slice& out) {
#pragma unroll 1
    for (int k = 0; k < kFactorDepth; ++k)
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
        for (int j = 0; j < kSliceColumns; ++j)
          out.at(i, j) += factors[row(i) * kFactorStride + step * kFactorDepth + k] * x[k * kSliceStride + column(j)];
  }
};

}  // namespace sskd_fast::cuda
