// Warp operations on rows of embeddings: dot products, and the gradient through the normalisation. Rows are a multiple
// of 16 bytes wide and aligned to 16 bytes.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/row_widths.h"
#include "cuda/storage.h"
#include "math/pixel_contrast.h"

namespace sskd_fast::cuda {

constexpr unsigned int kAllLanes = 0xFFFFFFFFu;
constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / kWarp;
constexpr int kRowBlocks = 4;  // minimum per multiprocessor: half occupancy, 64 registers per thread
constexpr int kGroups = kWarp / kGroup;

inline dim3 warps_for(int64_t rows) {
  return dim3{static_cast<unsigned int>((rows + kRowWarps - 1) / kRowWarps), 1, 1};
}

__device__ inline int64_t own_row() { return int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarp; }
__device__ inline int own_lane() { return static_cast<int>(threadIdx.x % kWarp); }

// Sum over `lanes` neighbouring lanes, in the same order for each of them.
template <int lanes = kWarp, typename T>
__device__ inline T lanes_sum(T x) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Sum and maximum over one lane of each group of `lanes` neighbours.
template <int lanes, typename T>
__device__ inline T groups_sum(T x) {
#pragma unroll
  for (int step = lanes; step < kWarp; step *= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

template <int lanes, typename T>
__device__ inline T groups_max(T x) {
#pragma unroll
  for (int step = lanes; step < kWarp; step *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}

template <int count, typename T>
__device__ inline T dot(const T (&x)[count], const T (&y)[count], T sum = 0) {
#pragma unroll
  for (int i = 0; i < count; ++i) sum += x[i] * y[i];
  return sum;
}

// Gradient of a row by the warp: grad(pack, values) gives the gradient of its unit vector, or of the row itself without
// normalize.
template <typename S, typename Grad>
__device__ inline void write_row_gradient(Grad grad, const S* row, Compute<S> inverse, bool normalize, int32_t packs,
                                          S* out) {
  using T = Compute<S>;
  T g[kPack<S>], x[kPack<S>], inner = 0;
  if (normalize) {
#pragma unroll 1
    for (int32_t c = own_lane(); c < packs; c += kWarp) {
      grad(c, g);
      load_pack<S>(row + int64_t{c} * kPack<S>, x);
      inner = dot(g, x, inner);
    }
    inner = radial_part(lanes_sum(inner) * inverse, inverse) * inverse;
  }
#pragma unroll 1
  for (int32_t c = own_lane(); c < packs; c += kWarp) {
    grad(c, g);
    load_pack<S>(row + int64_t{c} * kPack<S>, x);
    if (normalize)
#pragma unroll
      for (int i = 0; i < kPack<S>; ++i) g[i] = inverse * (g[i] - inner * x[i]);
    store_pack<S>(out + int64_t{c} * kPack<S>, g);
  }
}

}  // namespace sskd_fast::cuda
