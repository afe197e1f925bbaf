// Comparison of a row with 32 others, read at random: eight lanes share a row, and each group of eight has several rows
// in flight.
#pragma once

#include "cuda/rows.h"
#include "cuda/storage.h"

namespace sskd_fast::cuda {

// Rows that each group compares at a time: as many as fit into registers without spilling.
template <typename S>
constexpr int kCompared = sizeof(S) == 4 ? 4 : 2;

// Sums of several numbers over `lanes` neighbouring lanes: the first lanes / count of them get that of x[0], the next
// ones that of x[1], and so on. Half of the numbers are exchanged at a time, so a number takes few shuffles.
template <int lanes, int count, typename T>
__device__ inline T scattered_sums(const T (&x)[count]) {
  if constexpr (count == 1) {
    return lanes_sum<lanes>(x[0]);
  } else {
    const bool upper = (threadIdx.x & (lanes / 2)) != 0;
    T half[count / 2];
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const T kept = upper ? x[i + count / 2] : x[i], given = upper ? x[i] : x[i + count / 2];
      half[i] = kept + __shfl_xor_sync(kAllLanes, given, lanes / 2);
    }
    return scattered_sums<lanes / 2>(half);
  }
}

// For each of the 32 rows given by the lanes of a warp: n sums over its packs of 16 bytes, `in_flight` rows of a group
// at a time. address(index) is the first pack of a row. own(pack) is what every row's pack is compared with, and
// add(own, words, sums) compares them. Each lane gets the sums of its own row. `index` < 0: no row; its sums are
// meaningless.
template <int in_flight, typename T, int n, typename Address, typename Own, typename Add>
__device__ inline void compare_packs(Address address, int32_t packs, int32_t index, Own own, Add add, T (&result)[n]) {
  const int lane = own_lane(), group = lane / kGroup, member = lane % kGroup;
#pragma unroll 1
  for (int begin = 0; begin < kWarp; begin += kGroups * in_flight) {
    int32_t row[in_flight];
    T sums[in_flight][n] = {};
#pragma unroll
    for (int u = 0; u < in_flight; ++u) row[u] = __shfl_sync(kAllLanes, index, begin + u * kGroups + group);
#pragma unroll 1
    for (int32_t pack = member; pack < packs; pack += kGroup) {
      uint4 words[in_flight] = {};
#pragma unroll
      for (int u = 0; u < in_flight; ++u)
        if (row[u] >= 0) words[u] = load_words(address(row[u]) + pack);
      const auto x = own(pack);
#pragma unroll
      for (int u = 0; u < in_flight; ++u) add(x, words[u], sums[u]);
    }
    // The lane that gets the sums of the lane's own row, if it is one of these.
    const int row_of_own = lane / kGroups - begin / kGroups;
    const int source = lane % kGroups * kGroup + row_of_own % in_flight * (kGroup / in_flight);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      T all[in_flight];
#pragma unroll
      for (int u = 0; u < in_flight; ++u) all[u] = sums[u][i];
      const T brought = __shfl_sync(kAllLanes, scattered_sums<kGroup>(all), source & (kWarp - 1));
      if (row_of_own >= 0 && row_of_own < in_flight) result[i] = brought;
    }
  }
}

// The same for rows of numbers: add(own number, row's number, sums) accumulates in type T.
template <typename T, int n, typename S, typename Add>
__device__ inline void compare_rows(const S* own, const Rows<S>& rows, int32_t index, Add add, T (&result)[n]) {
  struct Pack {
    Compute<S> numbers[kPack<S>];
  };
  const auto address = [&](int32_t i) { return reinterpret_cast<const uint4*>(rows.row(int64_t{i})); };
  const auto own_pack = [&](int32_t pack) {
    Pack x;
    load_pack<S>(own + int64_t{pack} * kPack<S>, x.numbers);
    return x;
  };
  const auto add_pack = [&](const Pack& x, const uint4& words, T(&sums)[n]) {
    Compute<S> y[kPack<S>];
    unpack<S>(words, y);
#pragma unroll
    for (int i = 0; i < kPack<S>; ++i) add(static_cast<T>(x.numbers[i]), static_cast<T>(y[i]), sums);
  };
  compare_packs<kCompared<S>>(address, rows.packs(), index, own_pack, add_pack, result);
}

// |own - row|^2 / 2 for the lane's row, in type T.
template <typename T, typename S>
__device__ inline T half_squared_distance(const S* own, const Rows<S>& rows, int32_t index) {
  T sum[1] = {};
  compare_rows(own, rows, index, [](T x, T y, T(&sums)[1]) { sums[0] += (x - y) * (x - y); }, sum);
  return sum[0] * T(0.5);
}

// |own - row|^2 / 2 for a single row, by all lanes.
template <typename S>
__device__ inline Compute<S> half_squared_distance(const S* own, const S* row, int32_t packs) {
  Compute<S> sum = 0, x[kPack<S>], y[kPack<S>];
#pragma unroll 1
  for (int32_t pack = own_lane(); pack < packs; pack += kWarp) {
    load_pack<S>(own + int64_t{pack} * kPack<S>, x);
    load_pack<S>(row + int64_t{pack} * kPack<S>, y);
#pragma unroll
    for (int i = 0; i < kPack<S>; ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  }
  return lanes_sum(sum) * Compute<S>(0.5);
}

// `sum` plus the products of 16 signed bytes.
__device__ inline int dot_bytes(const uint4& x, const uint4& y, int sum = 0) {
  sum = __dp4a(static_cast<int>(x.x), static_cast<int>(y.x), sum);
  sum = __dp4a(static_cast<int>(x.y), static_cast<int>(y.y), sum);
  sum = __dp4a(static_cast<int>(x.z), static_cast<int>(y.z), sum);
  return __dp4a(static_cast<int>(x.w), static_cast<int>(y.w), sum);
}

}  // namespace sskd_fast::cuda
