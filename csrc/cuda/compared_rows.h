// Comparison of a row with 32 others, read at random: eight lanes share a row, and each group of eight has several rows
// in flight.
#pragma once

#include "cuda/rows.h"
#include "cuda/storage.h"

namespace sskd_fast::cuda {

// Rows that each group compares at a time: as many as fit into registers without spilling.
template <typename S>
constexpr int kCompared = sizeof(S) == 4 ? 4 : 2;

// For each of the 32 rows given by the lanes of a warp: n sums over the row. add(own number, row's number, sums)
// accumulates them in type T. Each lane gets the sums of its own row. `index` < 0: no row; its sums are meaningless.
template <typename T, int n, typename S, typename Add>
__device__ inline void compare_rows(const S* own, const Rows<S>& rows, int32_t index, Add add, T (&result)[n]) {
  const int lane = own_lane(), group = lane / kGroup, member = lane % kGroup;
#pragma unroll 1
  for (int begin = 0; begin < kWarp; begin += kGroups * kCompared<S>) {
    int32_t row[kCompared<S>];
    T sums[kCompared<S>][n] = {};
#pragma unroll
    for (int u = 0; u < kCompared<S>; ++u) row[u] = __shfl_sync(kAllLanes, index, begin + u * kGroups + group);
#pragma unroll 1
    for (int32_t pack = member; pack < rows.packs(); pack += kGroup) {
      uint4 words[kCompared<S>] = {};
#pragma unroll
      for (int u = 0; u < kCompared<S>; ++u)
        if (row[u] >= 0) words[u] = load_words(rows.row(int64_t{row[u]}) + int64_t{pack} * kPack<S>);
      Compute<S> x[kPack<S>], y[kPack<S>];
      load_pack<S>(own + int64_t{pack} * kPack<S>, x);
#pragma unroll
      for (int u = 0; u < kCompared<S>; ++u) {
        unpack<S>(words[u], y);
#pragma unroll
        for (int i = 0; i < kPack<S>; ++i) add(static_cast<T>(x[i]), static_cast<T>(y[i]), sums[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < kCompared<S>; ++u) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const T brought = __shfl_sync(kAllLanes, lanes_sum<kGroup>(sums[u][i]), lane % kGroups * kGroup);
        if (lane / kGroups == begin / kGroups + u) result[i] = brought;
      }
    }
  }
}

// |own - row|^2 / 2 for the lane's row, in type T.
template <typename T, typename S>
__device__ inline T half_squared_distance(const S* own, const Rows<S>& rows, int32_t index) {
  T sum[1] = {};
  compare_rows(own, rows, index, [](T x, T y, T(&sums)[1]) { sums[0] += (x - y) * (x - y); }, sum);
  return sum[0] * T(0.5);
}

}  // namespace sskd_fast::cuda
